"""Means and sums over masked positions: the only place that divides by a mask."""

import torch
from torch import Tensor


def masked_sum(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Sum of `values` where `mask` is 1; what stands at a masked position, NaN included, never matters.

    Args:
        values: (B, T), or (B, 1), which is broadcast over T.
        mask: (B, T), 1 for a real token.
        dim: the dimension to reduce, or None for all of them.

    Returns:
        A scalar, or the tensor without `dim`.
    """
    kept = torch.where(mask.bool(), values, torch.zeros_like(values))
    return kept.sum() if dim is None else kept.sum(dim)


def masked_mean(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Mean of `values` where `mask` is 1; an empty selection gives 0, still connected to the graph.

    Args:
        values: (B, T), or (B, 1), which is broadcast over T.
        mask: (B, T), 1 for a real token.
        dim: the dimension to reduce, or None for all of them.

    Returns:
        A scalar, or the tensor without `dim`.
    """
    count = mask.sum() if dim is None else mask.sum(dim)
    return masked_sum(values, mask, dim) / count.clamp(min=1)
