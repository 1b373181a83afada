"""The progress bar of a run."""

from typing import Any

from tqdm.auto import tqdm
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

# Logged name to the label in the progress bar. The loss is not among them: its value says nothing here.
SHOWN = {
    "reward": "reward",
    "kl": "kl",
    "completions/mean_length": "length",
    "effective_samples": "samples",
    "grad_norm": "grad",
}
FORMAT = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} steps, {elapsed} gone, {remaining} left{postfix}"


class ProgressBar(TrainerCallback):
    """One bar over the optimiser steps with reward, KL, length, effective samples, gradient norm and the time left."""

    def __init__(self) -> None:
        self.bar: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            self.bar = tqdm(
                total=state.max_steps, initial=state.global_step, unit="step", dynamic_ncols=True, bar_format=FORMAT
            )

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


def without_stock_output(trainer: Trainer) -> None:
    """Take transformers' own bar and printed logs off a trainer, because a recipe shows its own.

    Args:
        trainer: made, not yet training.
    """
    for stock in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(stock)
