"""Callbacks of a run: an interrupt that loses nothing, a log on disk, a progress bar."""

import json
import logging
import math
import signal
import threading
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)


class InterruptCallback(TrainerCallback):
    """The first Ctrl-C finishes the running step, saves a checkpoint and stops; the second stops at once.

    Attributes:
        interrupted: whether the run was stopped in this way.
    """

    def __init__(self) -> None:
        self.interrupted = False
        self._previous: Any = None
        self._installed = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # Python delivers signals to the main thread alone
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._handle)
            self._installed = True

    def _handle(self, number: int, frame: Any) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True
        print(
            "\nStopping after this step, a checkpoint will be saved; press Ctrl-C again to stop at once.", flush=True
        )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.interrupted:
            control.should_save = True
            control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.restore()
        if self.interrupted and state.is_world_process_zero:
            folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
            print(f"Stopped at step {state.global_step}. Resume with: --resume_from_checkpoint {folder}", flush=True)

    def restore(self) -> None:
        """Give the signal back to whoever had it."""
        if self._installed:
            signal.signal(signal.SIGINT, self._previous)
            self._installed = False


class MetricsCallback(TrainerCallback):
    """Appends what TRL logs to `metrics.jsonl`, a JSON object a line; values that are no finite number become null."""

    def __init__(self, path: Path) -> None:
        self.path = path

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
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(clean, default=str) + "\n")


class SampleCallback(TrainerCallback):
    """Shows the newest prompt and completion every few steps, so that a person sees what is being learned."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.newest: tuple[str, str] | None = None

    def reward(self, prompts: list[Any], completions: list[Any], **kwargs: Any) -> None:
        """Keep one pair; called beside the reward functions with TRL's arguments."""

        def text(value: Any) -> str:
            return value if isinstance(value, str) else str(value[-1]["content"])

        self.newest = (text(prompts[0]), text(completions[0]))

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        due = self.every > 0 and (state.global_step % self.every == 0 or state.global_step == 1)
        if due and self.newest and state.is_world_process_zero:
            prompt, completion = (value.strip().replace("\n", " / ") for value in self.newest)
            print(f"\n  step {state.global_step} asked: {prompt[:200]}\n  answered: {completion[:200]}", flush=True)
