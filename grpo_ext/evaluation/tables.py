"""Figures for people: one table of all models, and a sentence for each difference."""

from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from grpo_ext.evaluation.estimators import Interval
from grpo_ext.evaluation.scores import Comparison, Result


def percent(interval: Interval) -> str:
    """A mean with its interval in per cent, as rich's markup.

    Args:
        interval: of shares from 0 to 1.
    """
    return f"{interval.value:.1%} \\[{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def results_table(results: Sequence[Result], title: str) -> Table:
    """All models: a row for each measure and model, strict and lenient reading side by side.

    Args:
        results: of models on the same problems.
        title: headline.

    Returns:
        A table for rich.
    """
    readers = list(results[0].intervals)
    table = _table(title, ["measure", "model"], readers)
    for name in results[0].intervals[readers[0]]:
        for place, result in enumerate(results):
            figures = [percent(result.intervals[reader][name]) for reader in readers]
            number = f"{place + 1}  " if len(results) > 1 else ""
            label = escape(f"{number}{result.name}")
            table.add_row("" if place else name, label, *figures, end_section=result is results[-1])
    return table


def differences_table(results: Sequence[Result], comparisons: Sequence[Comparison]) -> Table:
    """All pairs of models: what they differ by, strict and lenient side by side, beyond noise where p is marked.

    Args:
        results: of models, whose places are their numbers.
        comparisons: of all pairs, as `compare` gives them.

    Returns:
        A table for rich.
    """
    readers = list(dict.fromkeys(found.reader for found in comparisons))
    numbers = {result.name: place for place, result in enumerate(results, start=1)}
    table = _table("Differences on the same problems, in points; * is beyond noise", ["measure", "models"], readers)
    by_measure: dict[str, dict[str, list[str]]] = {}
    for found in comparisons:
        pair = f"{numbers[found.second]} - {numbers[found.first]}"
        by_measure.setdefault(found.measure, {}).setdefault(pair, []).append(_difference(found))
    for name, pairs in by_measure.items():
        for place, (pair, cells) in enumerate(pairs.items(), start=1):
            table.add_row(name if place == 1 else "", pair, *cells, end_section=place == len(pairs))
    return table


def _table(title: str, left: Sequence[str], right: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for name in left:
        table.add_column(name, overflow="fold")
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _difference(found: Comparison) -> str:
    gap = found.difference
    text = f"{100 * gap.value:+.1f} \\[{100 * gap.low:+.1f}, {100 * gap.high:+.1f}] {_p(found.adjusted_p)}"
    return f"[bold]{text} *[/bold]" if found.beyond_noise else f"{text}  "


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def verdicts(comparisons: Sequence[Comparison]) -> list[str]:
    """The differences that are beyond noise, in words.

    Args:
        comparisons: of all pairs.

    Returns:
        A sentence for each pair and direction, one that says so where there are none.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for one in comparisons:
        gap = one.difference.value
        if one.beyond_noise:
            pair = (one.second, one.first) if gap > 0 else (one.first, one.second)
            found.setdefault(pair, []).append(f"{one.measure} ({one.reader}, {100 * abs(gap):.1f} points)")
    if not found:
        return ["No difference is beyond noise (p < 0.05, paired test, corrected for the number of pairs)."]
    return [
        f"{better} is better than {worse} beyond noise: {', '.join(what)}." for (better, worse), what in found.items()
    ]


def notes(results: Sequence[Result]) -> list[str]:
    """What a reader of the table has to know about single models.

    Args:
        results: of models.

    Returns:
        Sentences.
    """
    found = []
    for result in results:
        about = result.about
        if about["truncated"] >= 0.05:
            found.append(
                f"{result.name}: {about['truncated']:.0%} of the answers stop at the token limit; a larger "
                "--max_completion_length may find more of them right."
            )
        if about["unreadable_gold"]:
            found.append(
                f"{result.name}: {about['unreadable_gold']} problems without a readable gold answer are left out."
            )
    return found


def as_json(result: Result) -> dict[str, Any]:
    """A model's figures for a JSON file.

    Args:
        result: of one model.
    """
    measures = {
        name: {reader: found[name].as_dict() for reader, found in result.intervals.items()}
        for name in next(iter(result.intervals.values()))
    }
    return {"name": result.name, **result.about, "measures": measures}


def comparison_as_json(found: Comparison) -> dict[str, Any]:
    """A difference for a JSON file.

    Args:
        found: two models on one measure.
    """
    return {
        "first": found.first,
        "second": found.second,
        "reader": found.reader,
        "measure": found.measure,
        **found.difference.as_dict(),
        "adjusted_p": found.adjusted_p,
        "beyond_noise": found.beyond_noise,
    }
