"""Correction for completions that came from a sampler that differs from the policy it stands for."""

from collections.abc import Callable

import torch
from torch import Tensor


def truncated(ratio: Tensor, low: float | None, high: float | None) -> Tensor:
    """min(max(r, low), high).

    Args:
        ratio: (B, T) or (B, 1).
        low: bound from below, or None.
        high: bound from above, or None.

    Returns:
        As `ratio`.
    """
    return ratio if low is None and high is None else ratio.clamp(min=low, max=high)


def masked_out(ratio: Tensor, low: float | None, high: float | None) -> Tensor:
    """r where low <= r <= high, else 0.

    Args:
        ratio: (B, T) or (B, 1).
        low: bound from below, or None.
        high: bound from above, or None.

    Returns:
        As `ratio`.
    """
    outside = torch.zeros_like(ratio, dtype=torch.bool)
    if low is not None:
        outside |= ratio < low
    if high is not None:
        outside |= ratio > high
    return ratio.masked_fill(outside, 0.0)


# TRL's `vllm_importance_sampling_mode`: whether a row has one ratio, and what becomes of a ratio outside the bounds
CORRECTIONS: dict[str, tuple[bool, Callable[[Tensor, float | None, float | None], Tensor]]] = {
    "token_truncate": (False, truncated),
    "token_mask": (False, masked_out),
    "sequence_truncate": (True, truncated),
    "sequence_mask": (True, masked_out),
}


def sampler_correction(
    logps: Tensor, sampling_logps: Tensor, mask: Tensor, mode: str, low: float | None, high: float | None
) -> Tensor:
    """π(o_t) / μ(o_t) of each token, or their product over each row, kept within bounds.

    A token whose log-probability the sampler does not know (NaN) counts as sampled by the policy itself.

    Args:
        logps: (B, T) under the policy.
        sampling_logps: (B, T) under the sampler μ.
        mask: (B, T), 1 for tokens of the policy.
        mode: row of `CORRECTIONS`.
        low: bound from below, or None.
        high: bound from above, or None.

    Returns:
        (B, T), or (B, 1) for the product over a row.
    """
    by_row, bounded = CORRECTIONS[mode]
    difference = torch.where(mask.bool(), logps - sampling_logps, 0.0).nan_to_num(nan=0.0)
    if by_row:
        difference = difference.sum(1, keepdim=True)
    return bounded(difference.exp(), low, high)
