"""What a run leaves behind for people: a summary, curves, and one page with everything (`grpo-ext report`)."""

from grpo_ext.report.pictures import learning_curve
from grpo_ext.report.reading import read_metrics, read_run
from grpo_ext.report.record import changed_fields, hardware, versions, write_json

__all__ = [
    "changed_fields",
    "hardware",
    "learning_curve",
    "read_metrics",
    "read_run",
    "versions",
    "write_json",
]
