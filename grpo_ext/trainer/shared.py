"""One forward pass for several micro-batches of an optimiser step: the whole group in one pack.

The forward runs at the first of them. Each but the last is handed leaves in place of its values, whose gradients are
kept; the backward of the last one carries all of them into the pass. The gradients are those of separate passes.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def balanced_order(keys: Tensor, tokens: Tensor) -> list[int]:
    """Groups in an order in which neighbours together have about equally many tokens: long and short in turn.

    Args:
        keys: (R,) group of each row.
        tokens: (R,) tokens of each row.

    Returns:
        The groups.
    """
    totals: dict[int, int] = {}
    for key, count in zip(keys.tolist(), tokens.tolist(), strict=True):
        totals[key] = totals.get(key, 0) + count
    falling = sorted(totals, key=lambda key: totals[key], reverse=True)
    half = len(falling) // 2
    pairs = zip(falling[:half], reversed(falling[len(falling) - half :]), strict=True)
    return [key for pair in pairs for key in pair] + falling[half : len(falling) - half]


class _Rest(torch.autograd.Function):
    """Values of the last micro-batch; its backward adds the gradients that the others have left."""

    @staticmethod
    def forward(ctx: Any, shared: "SharedForward", *values: Tensor) -> tuple[Tensor, ...]:
        ctx.shared, ctx.like = shared, [(value.shape, value.dtype, value.device) for value in values]
        return tuple(value[shared.rows(shared.parts - 1)].clone() for value in values)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        shared: SharedForward = ctx.shared
        totals = []
        for column, ((shape, dtype, device), last) in enumerate(zip(ctx.like, grads, strict=True)):
            total = torch.zeros(shape, dtype=dtype, device=device)
            total[shared.rows(shared.parts - 1)] = last
            for part, leaves in enumerate(shared.leaves):
                left = leaves[column].grad
                if left is not None:
                    total[shared.rows(part)] = left
            totals.append(total)
        shared.leaves.clear()
        return None, *totals


class SharedForward:
    """Values of the rows of consecutive micro-batches, handed out one micro-batch at a time.

    Args:
        inputs: (K * B, P + T) ids of the rows, to recognise each micro-batch by.
        values: (K * B, ...) tensors that the loss differentiates, connected to the pass.
        others: (K * B, ...) tensors that it only reads.
        parts: K, number of micro-batches.
    """

    def __init__(self, inputs: Tensor, values: Sequence[Tensor], others: Sequence[Tensor], parts: int) -> None:
        self.parts = parts
        self.leaves: list[tuple[Tensor, ...]] = []
        self._inputs, self._values, self._others = inputs, tuple(values), tuple(others)
        self._size = len(inputs) // parts
        self._next = 0

    def __len__(self) -> int:
        return len(self._inputs)

    def rows(self, part: int) -> slice:
        """Rows of a micro-batch."""
        return slice(part * self._size, (part + 1) * self._size)

    @property
    def pending(self) -> bool:
        """Whether some micro-batches were handed out and others were not."""
        return 0 < self._next < self.parts

    def is_next(self, inputs: Tensor) -> bool:
        """Whether a batch is the micro-batch whose turn it is.

        Args:
            inputs: (B, P + T) ids.
        """
        return self._next < self.parts and torch.equal(self._inputs[self.rows(self._next)], inputs)

    def take(self) -> tuple[list[Tensor], list[Tensor]]:
        """Values and others of the next micro-batch."""
        rows = self.rows(self._next)
        self._next += 1
        others = [value[rows] for value in self._others]
        if self._next == self.parts:
            values = _Rest.apply(self, *self._values)
            self._values = ()
            return list(values), others
        leaves = tuple(value[rows].detach().requires_grad_() for value in self._values)
        self.leaves.append(leaves)
        return list(leaves), others
