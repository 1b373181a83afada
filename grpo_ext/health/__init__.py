"""The health of a run: detectors over the history of its logged metrics, and why a loss near 0 is normal.

`DETECTORS` is the list; `docs/how-to/health.md` says what each sees, where its threshold comes from and what to do.
"""

from grpo_ext.health.detectors import DETECTORS, chosen, thresholds
from grpo_ext.health.finding import Detector, Evidence, Finding
from grpo_ext.health.history import History, Trend
from grpo_ext.health.loss import at_the_end, at_the_start
from grpo_ext.health.monitor import Monitor
from grpo_ext.health.options import HealthOptions

__all__ = [
    "DETECTORS",
    "Detector",
    "Evidence",
    "Finding",
    "HealthOptions",
    "History",
    "Monitor",
    "Trend",
    "at_the_end",
    "at_the_start",
    "chosen",
    "thresholds",
]
