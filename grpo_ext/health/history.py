"""What a run has logged, as detectors read it: the last values of a metric, and the line through them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any

# Rows that are searched for a number of a metric: with several updates a generation TRL logs rewards only where it
# generates
REACH = 8

# k3 is exponential and can exceed what a float may be squared to
LARGEST = 1e30


@dataclass(frozen=True)
class Trend:
    """A least-squares line through a metric.

    Attributes:
        start: its value at the first row, within the values seen: a line may begin below the shortest length.
        end: its value at the last row, likewise.
        t: slope over its standard error; about 1 is noise, above 4 is not.
    """

    start: float
    end: float
    t: float


@dataclass(frozen=True)
class History:
    """The logged rows of a run, oldest first.

    Attributes:
        rows: a mapping from metric to value each; a value may be missing, None or not finite.
    """

    rows: Sequence[Mapping[str, Any]]

    def last(self, name: str, window: int) -> list[float]:
        """The last `window` numbers of a metric, or none when there are fewer.

        Args:
            name: as TRL logs it.
            window: numbers.
        """
        return [value for _, value in self._points(name, window, least=window)]

    def first(self, name: str, window: int) -> list[float]:
        """The first `window` numbers of a metric, or as many as there are."""
        rows = self.rows[: REACH * window]
        return [value for row in rows if (value := number(row.get(name))) is not None][:window]

    def trend(self, name: str, window: int, least: int) -> Trend | None:
        """The line through the last numbers of a metric over their rows, or None when there are too few.

        Args:
            name: as TRL logs it.
            window: numbers at most.
            least: numbers at least.
        """
        points = self._points(name, window, least)
        return _line(points) if len(points) > 2 else None

    def names(self, prefix: str, suffix: str, window: int) -> list[str]:
        """What stands between prefix and suffix in the metrics of the last `window` rows."""
        found = {name: None for row in self.rows[-window:] for name in row}
        return [n[len(prefix) : -len(suffix)] for n in found if n.startswith(prefix) and n.endswith(suffix)]

    def pairs(self, one: str, other: str, window: int) -> tuple[list[float], list[float]]:
        """Numbers of two metrics in the last `window` rows that have both."""
        rows = [(number(row.get(one)), number(row.get(other))) for row in self.rows[-REACH * window :]]
        both = [(a, b) for a, b in rows if a is not None and b is not None][-window:]
        return [a for a, _ in both], [b for _, b in both]

    def _points(self, name: str, window: int, least: int) -> list[tuple[int, float]]:
        points: list[tuple[int, float]] = []
        for back, row in enumerate(reversed(self.rows[-REACH * window :])):
            value = number(row.get(name))
            if value is not None:
                points.append((-back, value))
            if len(points) == window:
                break
        return points[::-1] if len(points) >= least else []


def number(value: Any) -> float | None:
    """A logged value as a finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # Before float(), which an integer may be too large for
    clamped = max(-LARGEST, min(LARGEST, value)) if value == value else math.nan
    return float(clamped) if clamped == clamped and abs(value) != math.inf else None


def correlation_of_changes(one: Sequence[float], other: Sequence[float]) -> float:
    """Correlation of the row-to-row changes of two metrics, which a common trend does not make.

    Args:
        one: values.
        other: as many.

    Returns:
        Between -1 and 1; 0 where one of them never changes.
    """
    pairs = [_changes(one), _changes(other)]
    if len(pairs[0]) < 2 or len(pairs[0]) != len(pairs[1]):
        return 0.0
    x, y = ([value - fmean(values) for value in values] for values in pairs)
    scale = math.sqrt(sum(a * a for a in x)) * math.sqrt(sum(b * b for b in y))
    return sum(a * b for a, b in zip(x, y, strict=True)) / scale if scale > 0.0 else 0.0


def _changes(values: Sequence[float]) -> list[float]:
    return [after - before for before, after in pairwise(values)]


def _line(points: Sequence[tuple[int, float]]) -> Trend:
    x, y = (fmean(column) for column in zip(*points, strict=True))
    spread = sum((at - x) * (at - x) for at, _ in points)
    slope = sum((at - x) * (value - y) for at, value in points) / spread
    rest = [value - y - slope * (at - x) for at, value in points]
    error = math.sqrt(sum(r * r for r in rest) / (len(points) - 2) / spread)
    # A line without noise is as sure as its slope is not zero
    t = slope / error if error > 0.0 else math.copysign(math.inf, slope) if slope else 0.0
    low, high = min(value for _, value in points), max(value for _, value in points)
    start, end = (min(max(y + slope * (at - x), low), high) for at in (points[0][0], points[-1][0]))
    return Trend(start, end, t)
