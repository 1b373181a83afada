"""Callbacks of a run: an interrupt that loses nothing, a log on disk, a progress bar."""

import functools
import json
import math
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from grpo_ext.rewards.rows import completion_text

# Logged name to the label in the progress bar.
SHOWN = {"reward": "reward", "kl": "kl", "completions/mean_length": "length"}


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
        # A trainer that was stopped may be asked to go on
        self.interrupted = False
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

    def watch(self, reward: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a reward function so that the newest pair it is asked to score is kept.

        Args:
            reward: reward function with TRL's arguments.

        Returns:
            A function with the same name and the same results.
        """

        @functools.wraps(reward)
        def watched(*args: Any, **kwargs: Any) -> Any:
            self.newest = (completion_text(kwargs["prompts"][0]), completion_text(kwargs["completions"][0]))
            return reward(*args, **kwargs)

        return watched

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        due = self.every > 0 and (state.global_step % self.every == 0 or state.global_step == 1)
        if due and self.newest and state.is_world_process_zero:
            prompt, completion = (value.strip().replace("\n", " / ") for value in self.newest)
            print(f"\n  step {state.global_step} asked: {prompt[:200]}\n  answered: {completion[:200]}", flush=True)


class ProgressBar(TrainerCallback):
    """One bar over the optimiser steps with reward, KL, completion length and the time left."""

    def __init__(self) -> None:
        self.bar: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, unit="step", dynamic_ncols=True)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if self.bar is not None and logs:
            values = {label: f"{float(logs[key]):.3g}" for key, label in SHOWN.items() if logs.get(key) is not None}
            if values:
                self.bar.set_postfix(values)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None
