"""The page as text: its content, its size, and that nothing in it is alive but its own two scripts."""

import base64
import gzip
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from made_runs import HOSTILE, group, make_hostile_run, make_run, metrics, scores, summary

from grpo_ext.report import read_run


class Elements(HTMLParser):
    """Start tags with their attributes, and the text of each script."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self.scripts[-1] += data


def page(*folders: Path, title: str = "") -> str:
    # The page's libraries are an extra, which not every environment of the tests has
    from grpo_ext.report.page import headline
    from grpo_ext.report.page import page as written

    runs = [read_run(folder) for folder in folders]
    return written(runs, title or headline(runs))


def words(content: str) -> str:
    """What a reader sees, roughly."""
    body = re.sub(r"<(script|style)\b.*?</\1>", "", content, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", body).split())


def data(content: str) -> dict[str, Any]:
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', content, re.DOTALL)
    return json.loads(found)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> str:
    findings = [
        {"step": 4, "detector": "dead_groups", "severity": "warning", "message": "Half of the groups are dead."},
        {"step": 9, "detector": "kl_drift", "severity": "critical", "message": "KL is 3 nats; raise beta."},
    ]
    return page(make_run(tmp_path_factory.mktemp("one") / "mine", findings=findings))


def test_the_headline_comes_before_everything_else(one: str) -> None:
    shown = words(one)
    order = ["org/model, arithmetic", "It learned: the gain is beyond noise.", "25.0 %", "75.0 %", "+50.0 points",
             "Share of 100 held-out problems", "1 critical finding", "Training reward", "Why is the loss near 0?",
             "Dead groups", "Half of the groups are dead.", "python -m grpo_ext.recipes.gsm8k --seed 3"]  # fmt: skip
    places = [shown.index(text) for text in order[:-3]] + [shown.rindex(text) for text in order[-3:]]
    assert places[:8] == sorted(places[:8])


def test_it_says_what_the_run_was(one: str) -> None:
    shown = words(one)
    for text in ("lora_r 16", "beta 0.04", "torch 2.13.0", "python 3.11.7", "a GPU, 80 GiB", "a processor",
                 "cores 2", "5 min 12 s", "24,000", "3.5 GiB", "KL is 3 nats; raise beta."):  # fmt: skip
        assert text in shown, text
    assert "preset" not in shown


def test_curves_have_units_and_the_logged_values(one: str) -> None:
    charts = data(one)["charts"]
    assert {"reward", "kl", "entropy", "completions/mean_length", "tokens_per_second"} <= set(charts)
    assert charts["entropy"]["layout"]["yaxis"]["title"]["text"] == "nats per token"
    assert charts["entropy"]["layout"]["xaxis"]["title"]["text"] == "optimiser step"
    (line,) = charts["kl"]["data"]
    assert (line["x"], line["y"]) == (list(range(1, 25)), pytest.approx([0.01 * step for step in range(1, 25)]))
    assert charts["completions/clipped_ratio"]["data"][0]["y"][0] == 25.0
    # A band of two edges under the line, and a running mean over the noise
    assert [len(charts[key]["data"]) for key in ("completions/mean_length", "reward")] == [3, 2]


def test_completions_are_there_with_their_ranking(one: str) -> None:
    (found,) = data(one)["completions"]
    assert [step["step"] for step in found["steps"]] == [1, 24]
    assert [row[:2] + row[3:] for row in found["steps"][0]["rows"][0][1]] == [[1.0, 0.5, "2"], [0.0, -0.5, "3"]]


def test_it_needs_no_network_and_stays_small(one: str) -> None:
    tags = Elements(one).tags
    loaded = [attrs.get(name) for _, attrs in tags for name in ("src", "href") if name in attrs]
    assert all(link is not None and link.startswith(("#", "data:")) for link in loaded)
    policy = next(str(attrs["content"]) for _, attrs in tags if attrs.get("http-equiv"))
    assert policy.startswith("default-src 'none'; ") and "http" not in policy
    style = one.partition("<style>")[2].partition("</style>")[0]
    assert "@import" not in style and "url(" not in style
    assert len(one.encode()) < 3_000_000


def test_places_that_are_linked_to_exist(one: str) -> None:
    tags = Elements(one).tags
    ids = [attrs["id"] for _, attrs in tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {str(attrs["href"])[1:] for tag, attrs in tags if tag == "a"} <= set(ids)


def test_the_policy_names_the_two_scripts_that_run(one: str) -> None:
    found = Elements(one)
    policy = next(attrs["content"] for tag, attrs in found.tags if attrs.get("http-equiv"))
    assert policy is not None and "unsafe-eval" not in policy
    _, packed, script = found.scripts
    library = gzip.decompress(base64.b64decode(packed)).decode()
    assert "plotly.js v" in library[:200]
    for code in (script, library):
        assert base64.b64encode(hashlib.sha256(code.encode()).digest()).decode() in policy


def test_hostile_texts_stay_texts(tmp_path: Path) -> None:
    content = page(make_hostile_run(tmp_path / HOSTILE[1]))
    found = Elements(content)
    assert [tag for tag, _ in found.tags].count("script") == 3
    assert not {"img", "svg", "iframe", "object", "embed", "form", "base"} & {tag for tag, _ in found.tags}
    assert not [attrs for _, attrs in found.tags if any(name.startswith("on") for name in attrs)]
    assert not [attrs for tag, attrs in found.tags if tag == "a" and not str(attrs["href"]).startswith("#")]
    ((_, packed, script), loaded) = found.scripts, data(content)
    assert "window.broken" not in packed + script
    texts = [row[3] for step in loaded["completions"][0]["steps"] for entry in step["rows"] for row in entry[1]]
    assert HOSTILE[0] in texts and HOSTILE[5] in texts
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\ufeff]", content)
    # Jinja has not looked into what it was given
    assert "{{ 7 * 7 }}" in content


def test_names_are_no_tags_to_plotly(tmp_path: Path) -> None:
    # It reads tags in names, on axes and in what it shows under the pointer
    content = page(make_hostile_run(tmp_path / HOSTILE[1]), make_run(tmp_path / "other"))
    charts = data(content)["charts"].values()
    shown = [
        trace[key] for chart in charts for trace in chart["data"] for key in ("name", "hovertemplate") if key in trace
    ]
    assert any("&lt;img" in text for text in shown)
    assert not [text for text in shown if "<" in text.replace("<extra>", "").replace("</extra>", "")]


def test_several_runs_share_their_curves(tmp_path: Path) -> None:
    second = summary(0.5, 0.25)
    second["config"]["beta"] = 0.1
    other = make_run(tmp_path / "b", steps=12, summary=second, groups=None)
    third = make_run(tmp_path / "c", steps=12, summary=None, groups=None)
    content = page(make_run(tmp_path / "a"), other, third)
    shown, loaded = words(content), data(content)
    assert loaded["runs"] == ["a", "b", "c"]
    assert [trace["name"] for trace in loaded["charts"]["kl"]["data"]] == ["a", "b", "c"]
    colours = [trace["line"]["color"] for trace in loaded["charts"]["kl"]["data"]]
    assert len(set(colours)) == 3 and all(colour in content.split("<main>")[0] for colour in colours)
    assert "a 25.0 % 75.0 % +50.0" in shown and "b 50.0 % 25.0 % −25.0" in shown
    assert "reward 0.2 → 0.8, not evaluated" in shown
    assert "b, c: No completions were kept" in shown
    assert "What differs" not in shown


def test_what_differs_between_runs_that_wrote_it_down(tmp_path: Path) -> None:
    second = summary()
    second["config"] = {"beta": 0.1, "seed": 7}
    shown = words(page(make_run(tmp_path / "a"), make_run(tmp_path / "b", summary=second)))
    assert "setting a b num_generations 8 unset" in shown.replace("beta 0.04 0.1 ", "")
    assert "beta 0.04 0.1" in shown and "seed unset 7" in shown


def test_without_an_evaluation_it_says_so(tmp_path: Path) -> None:
    shown = words(page(make_run(tmp_path / "mine", summary=None, groups=None)))
    assert "No evaluation was kept, so only the training reward can be read." in shown
    assert "There is no summary.json" in shown and "Nothing was written down by this run." in shown
    assert "mine" in shown and "Examples" not in shown


def test_a_run_of_one_step(tmp_path: Path) -> None:
    shown = words(page(make_run(tmp_path, metrics=[{"step": 1, "reward": 0.5}], groups=None)))
    assert "0.5 → 0.5" in shown


def test_several_held_out_sets(tmp_path: Path) -> None:
    made = summary()
    sides = {side: made[side] for side in ("before", "after")}
    made["evaluations"] = {"gsm8k": sides, "math": {**sides, "after": scores(0.26, 100)}}
    shown = words(page(make_run(tmp_path, summary=made)))
    assert "gsm8k 25.0 % 75.0 % +50.0" in shown and "math 25.0 % 26.0 % +1.0" in shown


def test_a_summary_of_odd_types_does_not_stop_the_page(tmp_path: Path) -> None:
    odd = {"before": 3, "after": [], "recipe": "x", "config": None, "versions": [1], "hardware": "y", "seconds": None}
    odd |= {"evaluations": [], "model": None, "command": None}
    assert "No evaluation was kept" in words(page(make_run(tmp_path, summary=odd)))
    odd |= {"hardware": {"gpus": ["x"], "cpu": None}, "seconds": "long", "model": ["a"], "dataset": {"b": 1}}
    assert "No evaluation was kept" in words(page(make_run(tmp_path, summary=odd)))


def test_a_long_run_with_long_completions_stays_under_five_megabytes(tmp_path: Path) -> None:
    texts = tuple(f"{i} " + "number " * 200 for i in range(8))
    groups = [group(step, index, "问题 " * 50, texts) for step in range(1, 801, 20) for index in range(6)]
    folders = [make_run(tmp_path / name, metrics=metrics(800), groups=groups) for name in ("a", "b", "c")]
    content = page(*folders)
    assert 3_000_000 < len(content.encode()) < 5_000_000
    assert all(len(trace["x"]) <= 500 for chart in data(content)["charts"].values() for trace in chart["data"])
    assert all(len(found["steps"]) >= 2 for found in data(content)["completions"])


def test_the_same_run_gives_the_same_page(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    assert page(folder) == page(folder)
