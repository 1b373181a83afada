"""What may be said about before and after."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_runs import summary

from grpo_ext.evaluation.estimators import Interval
from grpo_ext.report.reading import Run
from grpo_ext.report.verdict import Change, changes, ends

SHARES = st.floats(0, 1)


def test_the_interval_of_a_gain_by_hand() -> None:
    change = Change("x", 100, Interval(0.3, 0.2, 0.4), Interval(0.6, 0.57, 0.7))
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
    (change,) = changes(summary(before, after))
    assert change.verdict == (word, sentence)
    assert (change.name, change.problems) == ("arithmetic", 100)


@given(SHARES, SHARES, st.integers(1, 60))
def test_swapping_the_sides_mirrors_the_gain(before: float, after: float, problems: int) -> None:
    (one,), (other,) = changes(summary(before, after, problems)), changes(summary(after, before, problems))
    assert one.gain is not None and other.gain is not None
    assert one.gain.low == pytest.approx(-other.gain.high) and one.gain.high == pytest.approx(-other.gain.low)
    assert one.gain.low <= one.gain.value <= one.gain.high


def test_intervals_of_the_evaluation_are_taken() -> None:
    made = summary()
    made["after"]["accuracy_interval"] = [0.7, 0.8]
    (change,) = changes(made)
    assert change.after == Interval(0.75, 0.7, 0.8)


def test_several_sets_in_their_order() -> None:
    made = summary()
    made["evaluations"] = {
        "gsm8k": {"before": made["before"], "after": made["after"]},
        "math": {"before": {"accuracy": 0.5, "problems": 10}, "after": None},
        "broken": "no",
    }
    assert [(change.name, change.problems) for change in changes(made)] == [("gsm8k", 100), ("math", 10)]


@pytest.mark.parametrize(
    "scores",
    [
        None,
        3,
        {},
        {"accuracy": "x", "problems": 3},
        {"accuracy": 2.0, "problems": 3},
        {"accuracy": 0.5, "problems": 0},
    ],
)
def test_scores_that_are_none(scores: Any) -> None:
    assert list(changes({"before": scores, "after": scores})) == []


def test_ends_are_tenths() -> None:
    from pathlib import Path

    rows = [{"step": float(step), "reward": float(step)} for step in range(30)]
    assert ends(Run("r", Path(), rows)) == (1.0, 28.0)
    assert ends(Run("r", Path(), rows[:3])) == (0.0, 2.0)
