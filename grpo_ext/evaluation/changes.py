"""Accuracy before and after a run, read from its summary, and what the intervals allow to say of the difference."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from grpo_ext.evaluation.estimators import Interval

# How answers were read -> key of a measurement, see `grpo_ext.evaluation.greedy.evaluate`
READINGS = {"strict": "accuracy", "lenient": "accuracy_lenient"}


@dataclass(frozen=True)
class Change:
    """Accuracy on one held-out set before and after training; shares, not percentages.

    Attributes:
        name: of the set.
        reading: key of `READINGS`.
        problems: in it.
        before: accuracy with its 95 % interval, None where it was not measured.
        after: the same after training.
    """

    name: str
    reading: str
    problems: int
    before: Interval | None
    after: Interval | None

    @property
    def gain(self) -> Interval | None:
        """after − before, with the interval that follows from those of both sides.

        Lower end: gain − √((after − its lower end)² + (before's upper end − before)²), and mirrored (Zou and Donner
        2008, eq. 2). That both sides answer the same problems is left out of account, which makes it rather too wide.
        """
        if self.before is None or self.after is None:
            return None
        gain = self.after.value - self.before.value
        down = math.hypot(self.after.value - self.after.low, self.before.high - self.before.value)
        up = math.hypot(self.after.high - self.after.value, self.before.value - self.before.low)
        return Interval(gain, gain - down, gain + up)

    @property
    def verdict(self) -> tuple[str, str]:
        """A word for colours (better, worse, unclear) and what the interval of the gain allows to say."""
        if self.gain is None:
            return "unclear", "Measured on one side only, so nothing can be compared."
        if self.gain.low > 0:
            return "better", "It learned: the gain is beyond noise."
        if self.gain.high < 0:
            return "worse", "It got worse: the loss is beyond noise."
        return "unclear", "No difference beyond noise: the interval of the gain holds 0."


def changes(summary: Mapping[str, Any]) -> Iterator[Change]:
    """What a run measured before and after; what is no measurement is passed over.

    Args:
        summary: content of `summary.json`, with `evaluations` by name.

    Yields:
        One change a set and reading that was measured at least once, the set that is trained on first.
    """
    found = summary.get("evaluations")
    for name, sides in found.items() if isinstance(found, Mapping) else ():
        before, after = (sides.get(side) if isinstance(sides, Mapping) else None for side in ("before", "after"))
        for reading, key in READINGS.items():
            (one, some), (other, others) = _measured(before, key), _measured(after, key)
            if some or others:
                yield Change(str(name), reading, others or some, one, other)


def _measured(scores: Any, key: str) -> tuple[Interval | None, int]:
    """A share with its interval, and of how many problems; None and 0 where these are no numbers that they can be."""
    if isinstance(scores, Mapping):
        match scores.get(key), scores.get(f"{key}_interval"), scores.get("problems"):
            case ((int() | float() as value), [int() | float() as low, int() | float() as high], int(problems)):
                # No comparison holds for NaN
                if 0.0 <= value <= 1.0 and 0.0 <= low <= high <= 1.0 and problems > 0:
                    return Interval(float(value), float(low), float(high)), problems
    return None, 0
