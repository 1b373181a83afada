"""The log of a run on disk."""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from grpo_ext.callbacks.rows import append, drop_after


def peak_memory() -> float | None:
    """Largest memory so far in GiB: of the GPU, or of this process where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    if sys.platform == "win32":
        return None
    import resource

    # Kilobytes on Linux, bytes on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


class MetricsCallback(TrainerCallback):
    """Appends what TRL logs to `metrics.jsonl`, a JSON object a line; values that are no finite number become null.

    Each training step also gets `memory/peak_gib` and, where it can be asked for, `generated_tokens`. A resumed run
    goes on after the row of its checkpoint, and one that begins at step 0 begins the file.

    Args:
        path: the file.
        generated: gives the tokens of all completions generated so far.
    """

    def __init__(self, path: Path, generated: Callable[[], int] | None = None) -> None:
        self.path = path
        self._generated = generated

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            drop_after(self.path, state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero or not logs:
            return
        row = {"step": state.global_step, **logs}
        if "loss" in logs:
            row["memory/peak_gib"] = peak_memory()
            if self._generated is not None:
                row["generated_tokens"] = self._generated()
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        append(self.path, json.dumps(clean, default=str) + "\n")
