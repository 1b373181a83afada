"""A model that runs out of memory where a test says so."""

from collections.abc import Callable
from typing import Any

import torch
from tiny_runs import weights
from torch import Tensor

from grpo_ext import GRPOExtTrainer


class SmallMemory:
    """Runs out of memory in passes over too many rows or tokens.

    Args:
        trainer: its policy's passes are watched.
        rows: most rows of a pass.
        tokens: most tokens of a pass, which a tree packs into one row.
        gradient: whether passes with gradients are meant, or those without.
        backward: whether a pass fails at the end of its backward, when most gradients are there, or in its forward.
        after: number of such passes that are let through before.

    Attributes:
        sizes: (rows, tokens) of each pass of that kind, of recomputed ones too.
        failures: how many of them have failed.
    """

    def __init__(
        self,
        trainer: GRPOExtTrainer,
        rows: float = torch.inf,
        tokens: float = torch.inf,
        gradient: bool = True,
        backward: bool = False,
        after: int = 0,
    ) -> None:
        self.sizes: list[tuple[int, int]] = []
        self.failures = 0
        self._limits, self._gradient, self._backward, self._after = (rows, tokens), gradient, backward, after
        trainer.model.get_input_embeddings().register_forward_hook(self._watch)

    def _watch(self, module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if torch.is_grad_enabled() != self._gradient:
            return
        size = len(inputs[0]), inputs[0].numel()
        self.sizes.append(size)
        if all(value <= limit for value, limit in zip(size, self._limits, strict=True)):
            return
        self._after -= 1
        if self._after >= 0:
            return
        if self._backward:
            output.register_hook(self._fail)
        else:
            self._fail(output)

    def _fail(self, grad: Tensor) -> None:
        self.failures += 1
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB (by a test).")


def trained(trainer: GRPOExtTrainer) -> dict[str, Tensor]:
    """Weights at the end of a training."""
    trainer.train()
    return weights(trainer.model)


def logged(trainer: GRPOExtTrainer) -> list[dict[str, float]]:
    """Rows of the log, without what a clock says."""
    clock = ("step_time", "runtime", "per_second")
    return [
        {name: value for name, value in row.items() if not any(part in name for part in clock)}
        for row in trainer.state.log_history
    ]


def failing(call: int, error: Callable[[], BaseException], inner: Callable[..., Any]) -> Callable[..., Any]:
    """A function whose one call raises."""
    calls: list[None] = []

    def function(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        if len(calls) == call:
            raise error()
        return inner(*args, **kwargs)

    return function
