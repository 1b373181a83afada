"""Callbacks of a run: an interrupt that loses nothing, logs on disk, a progress bar, samples to look at, findings."""

from grpo_ext.callbacks.budget import TokenBudget
from grpo_ext.callbacks.completions import CompletionsCallback
from grpo_ext.callbacks.health import STOPPED, HealthCallback, stopped_by
from grpo_ext.callbacks.interrupt import InterruptCallback, Interrupted
from grpo_ext.callbacks.metrics import MetricsCallback
from grpo_ext.callbacks.progress import ProgressBar, without_stock_output
from grpo_ext.callbacks.rows import forget_logs
from grpo_ext.callbacks.samples import SampleCallback

__all__ = [
    "STOPPED",
    "CompletionsCallback",
    "HealthCallback",
    "InterruptCallback",
    "Interrupted",
    "MetricsCallback",
    "ProgressBar",
    "SampleCallback",
    "TokenBudget",
    "forget_logs",
    "stopped_by",
    "without_stock_output",
]
