"""What a summary says of before and after, and what may be said about it."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_ext.evaluation.changes import Change, changes
from grpo_ext.evaluation.estimators import Interval, bootstrap_interval

SHARES = st.floats(0, 1)


def scores(share: float, problems: int = 100) -> dict[str, Any]:
    """What `grpo_ext.evaluation.greedy.evaluate` gives."""
    right = round(share * problems)
    found = bootstrap_interval([1.0] * right + [0.0] * (problems - right))
    return {"accuracy": found.value, "accuracy_interval": [found.low, found.high], "problems": problems}


def strict(before: Any, after: Any, name: str = "gsm8k") -> list[Change]:
    found = list(changes({"evaluations": {name: {"before": before, "after": after}}}))
    assert all(change.reading == "strict" for change in found)
    return found


def test_the_interval_of_a_gain_by_hand() -> None:
    change = Change("x", "strict", 100, Interval(0.3, 0.2, 0.4), Interval(0.6, 0.57, 0.7))
    gain = change.gain
    assert gain is not None
    assert gain.value == pytest.approx(0.3)
    assert gain.low == pytest.approx(0.3 - math.sqrt(0.03**2 + 0.1**2))
    assert gain.high == pytest.approx(0.3 + math.sqrt(0.1**2 + 0.1**2))


@pytest.mark.parametrize(
    ("before", "after", "word", "sentence"),
    [
        (0.25, 0.75, "better", "It learned: the gain is beyond noise."),
        (0.75, 0.25, "worse", "It got worse: the loss is beyond noise."),
        (0.50, 0.52, "unclear", "No difference beyond noise: the interval of the gain holds 0."),
        (None, 0.52, "unclear", "Measured on one side only, so nothing can be compared."),
        (0.52, None, "unclear", "Measured on one side only, so nothing can be compared."),
    ],
)
def test_the_verdict(before: float | None, after: float | None, word: str, sentence: str) -> None:
    (change,) = strict(*(None if share is None else scores(share) for share in (before, after)))
    assert change.verdict == (word, sentence)
    assert (change.name, change.problems) == ("gsm8k", 100)


@given(SHARES, SHARES, st.integers(1, 60))
def test_swapping_the_sides_mirrors_the_gain(before: float, after: float, problems: int) -> None:
    sides = scores(before, problems), scores(after, problems)
    (one,), (other,) = strict(*sides), strict(*reversed(sides))
    assert one.gain is not None and other.gain is not None
    assert one.gain.low == pytest.approx(-other.gain.high) and one.gain.high == pytest.approx(-other.gain.low)
    assert one.gain.low <= one.gain.value <= one.gain.high


def test_sets_and_readings_in_their_order() -> None:
    lenient = {"accuracy_lenient": 0.9, "accuracy_lenient_interval": [0.7, 1]}
    evaluations = {
        "gsm8k": {"before": scores(0.25), "after": {**scores(0.75), **lenient}},
        "math": {"before": scores(0.5, 10), "after": None},
        "broken": "no",
    }
    found = list(changes({"evaluations": evaluations}))
    assert [(change.name, change.reading, change.problems) for change in found] == [
        ("gsm8k", "strict", 100),
        ("gsm8k", "lenient", 100),
        ("math", "strict", 10),
    ]
    assert found[1].after == Interval(0.9, 0.7, 1.0) and found[1].before is None


@pytest.mark.parametrize(
    "made",
    [
        None,
        3,
        {},
        {**scores(0.5), "accuracy": "x"},
        {**scores(0.5), "accuracy": 2.0},
        {**scores(0.5), "accuracy": math.nan},
        {**scores(0.5), "accuracy_interval": [0.4, math.inf]},
        {**scores(0.5), "accuracy_interval": 0.4},
        {**scores(0.5), "problems": 0},
        {"accuracy": 0.5, "problems": 100},
    ],
)
def test_scores_that_are_none(made: Any) -> None:
    assert strict(made, made) == [] and len(strict(made, scores(0.5))) == 1


@pytest.mark.parametrize("evaluations", [None, [], "x", {"gsm8k": None}])
def test_summaries_without_evaluations(evaluations: Any) -> None:
    assert list(changes({"evaluations": evaluations})) == []
