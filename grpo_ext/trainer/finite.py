"""Optimizer steps whose loss or gradient is not finite are left out."""

import logging
import math
from typing import Any

import torch
import transformers
from torch import Tensor

from grpo_ext.faults import RunStopped
from grpo_ext.trainer.memory import FittingTrainer

logger = logging.getLogger("grpo_ext")

SKIPPED = "faults/skipped_steps"


class FiniteTrainer(FittingTrainer):
    """Skips an optimizer step whose loss or gradient is not finite: weights and moments stay as they are.

    The step counts, and the schedule goes on. Looked at is the norm that transformers takes of the gradient in any
    case, once a step, so that the device is not waited for in between.

    Attributes:
        skipped_steps: steps of the run that were skipped.

    Raises:
        RunStopped: more than `max_skipped_steps` of them in a row.
        RuntimeError: transformers took no norm.
    """

    skipped_steps = 0
    _skipped_in_a_row = 0
    # Of the optimizer step so far
    _loss: Tensor | None = None

    def train(self, *args: Any, **kwargs: Any) -> Any:
        self.skipped_steps = self._skipped_in_a_row = 0
        self._loss = None
        return super().train(*args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        if self._loss is not None and self._step == self._window_start:
            raise RuntimeError(
                f"transformers {transformers.__version__} has made an optimizer step without a call of "
                "`_get_grad_norm`, so nothing would keep a step that is not finite from the weights; use a version "
                "that grpo_ext is tested with."
            )
        loss = super().training_step(*args, **kwargs)
        self._loss = loss if self._loss is None else self._loss + loss
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        loss, self._loss = self._loss, None
        if norm is not None and loss is not None:
            self._leave_out(model, self._not_finite(loss, norm))
        return norm

    def _not_finite(self, loss: Tensor, norm: Tensor | float) -> list[str]:
        """Which of the two is not finite, on any process: one that skipped alone would go its own way."""
        values = {"loss": loss.item(), "gradient": norm.item() if isinstance(norm, Tensor) else norm}
        if self.accelerator.scaler is not None or (self.is_deepspeed_enabled and self.args.fp16):
            # Half precision looks for its scale by gradients that overflow, and skips those steps itself
            del values["gradient"]
        flags = torch.tensor([not math.isfinite(value) for value in values.values()], device=loss.device)
        if self.accelerator.num_processes > 1:
            flags = self.accelerator.reduce(flags.float(), reduction="sum") > 0
        return [name for name, flag in zip(values, flags.tolist(), strict=True) if flag]

    def _leave_out(self, model: Any, names: list[str]) -> None:
        if not names:
            self._skipped_in_a_row = 0
            return
        # An optimizer passes over a parameter without a gradient
        model.zero_grad()
        self.skipped_steps += 1
        self._skipped_in_a_row += 1
        step, limit = self.state.global_step + 1, self.args.max_skipped_steps
        what = f"Step {step}: the {' and the '.join(names)} {'is' if len(names) == 1 else 'are'} not finite"
        if self.is_deepspeed_enabled:
            raise RunStopped(
                f"{what}, and DeepSpeed has updated the weights before that is known; go on from a checkpoint before "
                "this step, with a lower `learning_rate`."
            )
        if self._skipped_in_a_row > limit:
            raise RunStopped(
                f"{what}, {self._skipped_in_a_row} times in a row, more than `max_skipped_steps` {limit}; lower "
                "`learning_rate`, or look for what makes it so in the last completions and rewards."
            )
        logger.warning(
            "%s, so its update is left out and weights and optimizer stay as they are; %d in a row of at most %d "
            "(`max_skipped_steps`).",
            what,
            self._skipped_in_a_row,
            limit,
        )

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if self.skipped_steps and "loss" in logs:
            logs[SKIPPED] = float(self.skipped_steps)
        super().log(logs, *args, **kwargs)
