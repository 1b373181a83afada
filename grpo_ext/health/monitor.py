"""Detectors over a run as it is logged; a finding is said once, not at every step."""

from collections.abc import Mapping
from typing import Any

from grpo_ext.health.detectors import DETECTORS
from grpo_ext.health.finding import Detector, Finding
from grpo_ext.health.history import History


class Monitor:
    """Feeds logged rows to detectors and says what is new.

    A detector that has spoken is silent until its warning turns critical, or it has seen nothing for `rearm` rows.

    Args:
        detectors: name to detector.
        rearm: rows without evidence after which a detector may speak again.
    """

    def __init__(self, detectors: Mapping[str, Detector] = DETECTORS, rearm: int = 20) -> None:
        self.detectors = dict(detectors)
        self.rearm = rearm
        self._rows: list[Mapping[str, Any]] = []
        # Row of the last evidence of a detector, and whether it was said to be critical
        self._spoken: dict[str, tuple[int, bool]] = {}

    def add(self, step: int, row: Mapping[str, Any]) -> list[Finding]:
        """Judge the run with one row more.

        Args:
            step: optimiser step of the row.
            row: what was logged.

        Returns:
            New findings.
        """
        self._rows.append(row)
        history, at = History(self._rows), len(self._rows)
        found = []
        for name, detector in self.detectors.items():
            evidence = detector(history)
            last, critical = self._spoken.get(name, (at - self.rearm - 1, False))
            quiet = at - last > self.rearm
            if evidence is None:
                continue
            self._spoken[name] = (at, evidence.critical or (critical and not quiet))
            if quiet or (evidence.critical and not critical):
                severity = "critical" if evidence.critical else "warning"
                found.append(Finding(step, name, severity, evidence.message, evidence.value))
        return found
