"""The page: what the runs' folders hold, in the order in which a person asks, as one HTML file."""

import base64
import gzip
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from grpo_ext import __version__
from grpo_ext.evaluation.changes import changes
from grpo_ext.evaluation.estimators import Interval
from grpo_ext.health import at_the_end
from grpo_ext.report.choice import chosen_completions
from grpo_ext.report.figures import figure
from grpo_ext.report.panels import LOSS_NOTE, ends, panels, series
from grpo_ext.report.pictures import COLOURS
from grpo_ext.report.reading import Run, finite
from grpo_ext.report.settings import differing, notes, setup, words
from grpo_ext.visible import visible

# Bytes of completions on the page; plotly.js takes 2 MB and the whole is to stay under 5 MB.
COMPLETIONS = 2_000_000


def anchor(heading: str) -> str:
    """Heading as the name of a place on the page."""
    return heading.lower().replace(" ", "-")


def number(value: float | None) -> str:
    """A value with three digits."""
    return "none" if value is None else f"{value:.3g}"


def share(score: Interval | None) -> str:
    """A score as a percentage."""
    return "not measured" if score is None else f"{100 * score.value:.1f}\N{NO-BREAK SPACE}%"


def points(value: float, unit: bool = False) -> str:
    """A difference of shares in percentage points, with its sign."""
    text = f"{100 * value:+.1f}".replace("-", "−")
    return f"{text} points" if unit else text


def duration(seconds: float) -> str:
    """Seconds in the two largest units."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def headline(runs: Sequence[Run]) -> str:
    """Model and problems of the runs, or their folders' names where those are unknown.

    Args:
        runs: at least one.
    """
    named = {tuple(words(run.summary.get(key) or "") for key in ("model", "dataset")) for run in runs}
    if len(named) == 1:
        model, problems = named.pop()
        if model:
            return f"{model}, {problems}" if problems else model
    return visible(", ".join(run.name for run in runs))


def _facts(run: Run) -> Iterator[tuple[str, str]]:
    def moved(key: str, scale: float = 1.0, unit: str = "") -> str:
        first, last = (scale * value for value in ends(run, key))
        return f"{first:.3g} → {last:.3g}{unit}"

    logged = {key for row in run.metrics for key in row}
    total = [row["num_tokens"] for row in run.metrics if "num_tokens" in row]
    yield "Optimiser steps", f"{int(run.metrics[-1]['step']):,}"
    if finite(run.summary.get("seconds")):
        yield "Whole run", duration(run.summary["seconds"])
    if total:
        yield "Tokens trained on", f"{total[-1]:,.0f}"
    yield "Training reward", moved("reward")
    for key, label, scale, unit in (
        ("dead_groups" if "dead_groups" in logged else "frac_reward_zero_std", "Dead groups", 100.0, " %"),
        ("completions/mean_length", "Length, tokens", 1.0, ""),
        ("completions/clipped_ratio", "Truncated", 100.0, " %"),
    ):
        if key in logged:
            yield label, moved(key, scale, unit)
    if "memory/peak_gib" in logged:
        yield "Peak memory", f"{max(series(run, 'memory/peak_gib')[1]):.1f} GiB"


def _besides(run: Run) -> Iterator[tuple[str, str, str]]:
    """What else the evaluation measured before and after."""
    before, after = (run.summary.get(side) for side in ("before", "after"))
    if not isinstance(before, Mapping) or not isinstance(after, Mapping):
        return
    for key, label, scale, unit in (
        ("accuracy_lenient", "read leniently", 100.0, " %"),
        ("mean_length", "mean length", 1.0, " tokens"),
        ("truncated", "cut off", 100.0, " %"),
    ):
        sides = [f"{scale * value:.1f}{unit}" for value in (before.get(key), after.get(key)) if finite(value)]
        if len(sides) == 2:
            yield label, sides[0], sides[1]


@cache
def _library() -> tuple[str, str]:
    """plotly.js as the hash that the policy names, and compressed for the page."""
    code = get_plotlyjs().encode()
    return _hash(code), base64.b64encode(gzip.compress(code, 9, mtime=0)).decode()


def _hash(code: bytes) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(code).digest()).decode()}'"


def _assets(data: Mapping[str, Any]) -> dict[str, Any]:
    """Style, scripts and the policy by which a browser runs these scripts, loads nothing, and runs no other."""
    folder = resources.files("grpo_ext.report") / "assets"
    style, script = ((folder / name).read_text(encoding="utf-8") for name in ("style.css", "script.js"))
    library, packed = _library()
    policy = [
        "default-src 'none'",
        f"script-src {_hash(script.encode())} {library}",
        "style-src 'unsafe-inline'",
        "img-src data: blob:",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    return {
        "policy": "; ".join(policy),
        "style": Markup(style),
        "script": Markup(script),
        "plotly": packed,
        "data": data,
    }


def _severity(row: Mapping[str, Any]) -> str:
    found = str(row.get("severity", ""))
    return found if re.fullmatch(r"\w+", found) else "unknown"


def page(runs: Sequence[Run], title: str) -> str:
    """The page as text.

    Args:
        runs: at least one.
        title: headline.

    Returns:
        HTML that needs no other file and no network. What came from data sets and models is in it as text alone.
    """
    sections = panels(runs)
    first = sections["Reward"].pop(0)
    sections = {heading: rows for heading, rows in sections.items() if rows}
    every = [first, *(panel for rows in sections.values() for panel in rows)]
    kept = [chosen_completions(run, COMPLETIONS // len(runs)) for run in runs]
    data = {
        "runs": [run.name for run in runs],
        "charts": {panel.key: figure(runs, panel) for panel in every},
        "completions": kept,
    }
    setups = [setup(run) for run in runs]
    return _template().render(
        **_assets(data),
        **_judged(runs),
        title=visible(title),
        version=__version__,
        runs=runs,
        colours=[COLOURS[index % len(COLOURS)] for index in range(len(runs))],
        rewards=[ends(run) for run in runs],
        facts=list(_facts(runs[0])),
        besides=list(_besides(runs[0])),
        first=first,
        smooth=any(len(series(run, "reward")[1]) >= 20 for run in runs),
        notes=notes(runs),
        sections=sections,
        loss_note=LOSS_NOTE,
        loss_here=[text for run in runs[:1] if len(runs) == 1 and (text := at_the_end(run.metrics))],
        kept=any(choice["steps"] for choice in kept),
        setups=setups,
        differing=differing(setups) if len(runs) > 1 else {},
    )


def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("grpo_ext.report", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":")}
    environment.filters |= {"anchor": anchor, "number": number, "share": share, "points": points}
    return environment.get_template("page.html.j2")


def _judged(runs: Sequence[Run]) -> dict[str, Any]:
    """What evaluations and the watch over the run's health found."""
    changed = [[change for change in changes(run.summary) if change.reading == "strict"] for run in runs]
    found = [
        (
            run.name,
            {name: words(row.get(name, "")) for name in ("step", "detector", "message")}
            | {"severity": _severity(row)},
        )
        for run in runs
        for row in run.findings
    ]
    serious = [row["message"] for _, row in found if row["severity"] == "critical"]
    return {
        "changes": changed,
        "sizes": " or ".join(map(str, sorted({change.problems for rows in changed for change in rows}))),
        "findings": found,
        "watched": any((run.folder / "health.jsonl").is_file() for run in runs),
        "serious": len(serious),
        "first_serious": serious[0] if serious else "",
    }
