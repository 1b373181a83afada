"""What a detector says, and what becomes of it."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from grpo_ext.health.history import History


@dataclass(frozen=True)
class Evidence:
    """What one detector sees in a history.

    Attributes:
        value: the number that passed its threshold.
        message: one sentence with the number and the setting to change.
        critical: whether going on as it is can teach nothing or does harm.
    """

    value: float
    message: str
    critical: bool = False


Detector = Callable[[History], Evidence | None]


@dataclass(frozen=True)
class Finding:
    """Evidence with its place in the run, one line of `health.jsonl`.

    Attributes:
        step: optimiser step of the logged row.
        detector: name in `DETECTORS`.
        severity: "warning" or "critical".
        message: one sentence.
        value: the number in it.
    """

    step: int
    detector: str
    severity: str
    message: str
    value: float

    def row(self) -> dict[str, Any]:
        """The finding as a JSON object."""
        return asdict(self)

    def __str__(self) -> str:
        return f"Health, step {self.step}, {self.detector} ({self.severity}): {self.message}"
