"""Did it learn: accuracy before and after with intervals, and one sentence on it."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from grpo_ext.evaluation.estimators import Interval, bootstrap_interval
from grpo_ext.report.panels import series
from grpo_ext.report.reading import Run, finite


@dataclass(frozen=True)
class Change:
    """Accuracy on one held-out set before and after training; shares, not percentages.

    Attributes:
        name: of the set.
        problems: in it.
        before: accuracy with its 95 % interval, None where it was not measured.
        after: the same after training.
    """

    name: str
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


def _side(scores: Any) -> tuple[Interval | None, int]:
    if not isinstance(scores, Mapping):
        return None, 0
    accuracy, problems = scores.get("accuracy"), scores.get("problems")
    if not finite(accuracy) or not 0.0 <= accuracy <= 1.0 or not finite(problems) or problems < 1:
        return None, 0
    match scores.get("accuracy_interval"):
        case [low, high] if finite(low) and finite(high):
            return Interval(float(accuracy), float(low), float(high)), int(problems)
    right = round(accuracy * int(problems))
    return bootstrap_interval([1.0] * right + [0.0] * (int(problems) - right)), int(problems)


def changes(summary: Mapping[str, Any]) -> Iterator[Change]:
    """Each held-out set that a summary names, the first one first.

    Args:
        summary: `evaluations` by name, or `before` and `after`.

    Yields:
        One change a set that was measured at least once.
    """
    found = summary.get("evaluations")
    if not isinstance(found, Mapping) or not found:
        found = {str(summary.get("dataset", "held out")): {name: summary.get(name) for name in ("before", "after")}}
    for name, sides in found.items():
        if isinstance(sides, Mapping):
            (before, some), (after, others) = _side(sides.get("before")), _side(sides.get("after"))
            if some or others:
                yield Change(str(name), others or some, before, after)


def ends(run: Run, key: str = "reward") -> tuple[float, float]:
    """Mean of a logged value over the first and over the last tenth of the steps.

    Args:
        run: what was logged.
        key: logged name, with at least one value.
    """
    values = series(run, key, points=10**9)[1]
    size = max(1, len(values) // 10)
    return sum(values[:size]) / size, sum(values[-size:]) / size
