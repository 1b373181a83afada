"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

// Text of a run only ever becomes text: there is no innerHTML in this file.
function make(tag, className, ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...children.filter((child) => child !== null));
  return node;
}

// Curves

const hidden = new Set();
const drawn = new Map();
const coarse = matchMedia("(pointer: coarse)").matches;
const hovers = matchMedia("(hover: hover)").matches;

async function loadPlotly() {
  const packed = Uint8Array.from(atob(byId("plotly").textContent), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);
}

async function draw(place) {
  const chart = data.charts[place.dataset.chart];
  const layout = chart.layout;
  // A finger on a curve is to scroll the page
  if (coarse) layout.dragmode = false;
  const config = { responsive: true, displaylogo: false, modeBarButtons: [["toImage", "resetScale2d"]], displayModeBar: hovers ? "hover" : false };
  place.classList.remove("waiting");
  await Plotly.newPlot(place, chart.data, layout, config);
  drawn.set(place, chart);
  show(place, chart);
}

function show(place, chart) {
  if (data.runs.length > 1) {
    Plotly.restyle(place, { visible: chart.data.map((trace) => !hidden.has(trace.legendgroup)) });
  }
}

function watchPlots() {
  const observer = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      observer.unobserve(entry.target);
      draw(entry.target);
    }
  }, { rootMargin: "300px" });
  for (const place of document.querySelectorAll(".curve")) observer.observe(place);
}

async function curves() {
  const places = document.querySelectorAll(".curve");
  for (const place of places) place.classList.add("waiting");
  if (typeof DecompressionStream === "undefined") {
    for (const place of places) place.textContent = "This browser is too old for the curves (it lacks DecompressionStream); any of 2023 or later shows them.";
    return;
  }
  await loadPlotly();
  for (const button of document.querySelectorAll(".legend button")) {
    button.addEventListener("click", () => {
      const run = button.dataset.run;
      hidden.has(run) ? hidden.delete(run) : hidden.add(run);
      button.setAttribute("aria-pressed", String(!hidden.has(run)));
      for (const [place, chart] of drawn) show(place, chart);
    });
  }
  watchPlots();
  document.documentElement.dataset.ready = "yes";
}

// Examples

const shownNumber = (value) => (value === null ? "none" : Number(value.toPrecision(3)).toString());
const SHORT = 700;

function statistics([, rows]) {
  const rewards = rows.map((row) => row[0]).filter((value) => value !== null);
  const sum = rewards.reduce((total, value) => total + value, 0);
  const low = Math.min(...rewards), high = Math.max(...rewards);
  return rewards.length ? { rewards, mean: sum / rewards.length, low, high, spread: high - low } : { rewards, mean: null, low: 0, high: 0, spread: 0 };
}

const FILTERS = { all: () => true, mixed: (found) => found.spread > 0, dead: (found) => found.spread === 0 };
const ORDERS = {
  drawn: () => 0,
  low: (a, b) => (a.found.mean ?? Infinity) - (b.found.mean ?? Infinity),
  high: (a, b) => (b.found.mean ?? -Infinity) - (a.found.mean ?? -Infinity),
  spread: (a, b) => b.found.spread - a.found.spread,
};

function strip(found, scale) {
  const line = make("span", "strip");
  for (const value of found.rewards) {
    const mark = make("i");
    mark.style.left = `${(100 * (value - scale.low)) / (scale.high - scale.low || 1)}%`;
    line.append(mark);
  }
  return line;
}

function textCell(text) {
  const cell = make("td", "text");
  if (text.length <= SHORT) {
    cell.textContent = text || "(empty)";
    return cell;
  }
  const more = make("button", "", `show all ${text.length} characters`);
  more.type = "button";
  more.addEventListener("click", () => { cell.textContent = text; });
  cell.append(`${text.slice(0, SHORT)} … `, more);
  return cell;
}

function rewardCell(value, scale) {
  const share = value === null ? 0 : (100 * (value - scale.low)) / (scale.high - scale.low || 1);
  const fill = make("i");
  fill.style.width = `${share}%`;
  return make("td", "num reward", make("b", "", shownNumber(value)), make("span", "bar", fill));
}

function showRanking(group, scale) {
  const place = byId("ex-ranking");
  if (!group) {
    place.replaceChildren(make("p", "muted", "No group fits."));
    return;
  }
  const [prompt, rows] = group;
  const parts = Object.keys(rows[0][2]).length > 1 ? Object.keys(rows[0][2]) : [];
  const head = make("tr", "", make("th", "num", "rank"), make("th", "num", "reward"),
    ...parts.map((name) => make("th", "num part", name)), make("th", "num", "advantage"), make("th", "", "completion"));
  const body = make("tbody");
  let rank = 0, before;
  rows.forEach((row, index) => {
    if (row[0] !== before) rank = index + 1;
    before = row[0];
    const sign = row[1] > 0 ? "positive" : row[1] < 0 ? "negative" : "muted";
    body.append(make("tr", "", make("td", "num muted", String(rank)), rewardCell(row[0], scale),
      ...parts.map((name) => make("td", "num part", shownNumber(row[2][name] ?? null))),
      make("td", `num ${sign}`, (row[1] > 0 ? "+" : "") + shownNumber(row[1])), textCell(row[3])));
  });
  place.replaceChildren(make("div", "prompt", prompt), make("div", "scroll", make("table", "", make("thead", "", head), body)));
}

function examples() {
  if (!byId("examples")) return;
  const choose = { run: byId("ex-run"), step: byId("ex-step"), show: byId("ex-show"), order: byId("ex-order"), find: byId("ex-find") };
  const withRows = data.completions.map((found, index) => index).filter((index) => data.completions[index].steps.length);
  let run = withRows[0], selected = 0;

  const option = (value, label) => { const node = make("option", "", label); node.value = value; return node; };
  const steps = () => data.completions[run].steps;

  function fillSteps() {
    choose.step.replaceChildren(...steps().map((one, index) => option(index, String(one.step))));
    choose.step.value = String(steps().length - 1);
  }

  function select(rows, index, scale) {
    selected = index;
    byId("ex-groups").childNodes.forEach((node, place) => node.setAttribute("aria-selected", String(place === index)));
    showRanking(rows[index]?.group, scale);
  }

  function render() {
    const step = steps()[Number(choose.step.value)];
    const all = step.rows.map((group, index) => ({ group, index, found: statistics(group) }));
    const scale = { low: Math.min(...all.map((row) => row.found.low)), high: Math.max(...all.map((row) => row.found.high)) };
    const sought = choose.find.value.toLowerCase();
    const fits = ({ group, found }) => FILTERS[choose.show.value](found)
      && (!sought || group[0].toLowerCase().includes(sought) || group[1].some((row) => row[3].toLowerCase().includes(sought)));
    const rows = all.filter(fits).sort(ORDERS[choose.order.value]);
    byId("ex-groups").replaceChildren(...rows.map((row, place) => {
      const mean = row.found.mean === null ? "no reward" : `mean ${shownNumber(row.found.mean)}`;
      const node = make("button", "group", make("p", "", row.group[0]),
        make("span", "meta", make("span", "", `${row.group[1].length} completions, ${mean}`), strip(row.found, scale)));
      node.type = "button";
      node.setAttribute("role", "option");
      node.addEventListener("click", () => select(rows, place, scale));
      return node;
    }));
    const left = step.groups > step.rows.length ? ` (the first ${step.rows.length} are here)` : "";
    const kept = steps().length < data.completions[run].kept ? `; ${steps().length} of ${data.completions[run].kept} kept steps are on this page` : "";
    byId("kept").textContent = `Step ${step.step}: ${rows.length} of ${step.groups} groups${left}${kept}. A group is one prompt's completions, ranked by reward; its advantages are what the policy learns from.`;
    byId("ex-back").disabled = choose.step.selectedIndex === 0;
    byId("ex-next").disabled = choose.step.selectedIndex === steps().length - 1;
    select(rows, Math.min(selected, Math.max(rows.length - 1, 0)), scale);
  }

  function move(by) {
    choose.step.selectedIndex += by;
    render();
  }

  choose.run?.replaceChildren(...withRows.map((index) => option(index, data.runs[index])));
  choose.run?.addEventListener("change", () => { run = Number(choose.run.value); fillSteps(); render(); });
  byId("ex-back").addEventListener("click", () => move(-1));
  byId("ex-next").addEventListener("click", () => move(1));
  for (const control of [choose.step, choose.show, choose.order]) control.addEventListener("change", render);
  choose.find.addEventListener("input", render);
  fillSteps();
  render();
}

examples();
curves();
