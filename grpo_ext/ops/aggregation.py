"""Reductions of per-token losses to one number, normalised so that the parts of a window add up to the whole.

Each part (a micro-batch on a rank) is divided by totals of the whole accumulation window, so the sum over the parts
is the loss of one large batch.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from grpo_ext.ops.masking import masked_mean, masked_sum


@dataclass(frozen=True)
class Window:
    """Totals of the accumulation window that a micro-batch is part of.

    Attributes:
        rows: completions in the window.
        tokens: unmasked completion tokens in the window (may be a tensor).
        parts: micro-batches in the window.
        group_size: completions of a prompt, G.
        max_completion_length: the constant of Dr. GRPO, in tokens.
    """

    rows: float
    tokens: float | Tensor
    parts: float
    group_size: int
    max_completion_length: int


def token_mean(losses: Tensor, mask: Tensor, window: Window) -> Tensor:
    """Σ_i Σ_t L_{i,t} / Σ_i |o_i| over the window: every token weighs the same (DAPO 2503.14476, eq. 12).

    Args:
        losses: (B, T), or (B, 1), which is broadcast over T.
        mask: (B, T).
        window: totals of the accumulation window.

    Returns:
        A scalar, this part's share of the window's loss.
    """
    return masked_sum(losses.expand_as(mask), mask) / window.tokens


def part_token_mean(losses: Tensor, mask: Tensor, window: Window) -> Tensor:
    """Mean over the tokens of each micro-batch, then over micro-batches (TRL's `bnpo`): depends on how rows are split.

    Args:
        losses: (B, T), or (B, 1), which is broadcast over T.
        mask: (B, T).
        window: totals of the accumulation window.

    Returns:
        A scalar, this part's share of the window's loss.
    """
    return masked_mean(losses.expand_as(mask), mask) / window.parts


def seq_mean_token_mean(losses: Tensor, mask: Tensor, window: Window) -> Tensor:
    """(1/R) Σ_i (1/|o_i|) Σ_t L_{i,t}: every output weighs the same (DeepSeekMath 2402.03300, eq. 3).

    Args:
        losses: (B, T), or (B, 1), which is broadcast over T.
        mask: (B, T).
        window: totals of the accumulation window.

    Returns:
        A scalar, this part's share of the window's loss.
    """
    return masked_mean(losses.expand_as(mask), mask, dim=1).sum() / window.rows


def seq_mean_token_sum(losses: Tensor, mask: Tensor, window: Window) -> Tensor:
    """(1/R) Σ_i Σ_t L_{i,t}: an output weighs as much as it is long (LUSPO 2602.05261, eq. 7).

    Args:
        losses: (B, T), or (B, 1), which is broadcast over T.
        mask: (B, T).
        window: totals of the accumulation window.

    Returns:
        A scalar, this part's share of the window's loss.
    """
    return masked_sum(losses.expand_as(mask), mask) / window.rows


def seq_mean_token_sum_norm(losses: Tensor, mask: Tensor, window: Window) -> Tensor:
    """(1/(R L)) Σ_i Σ_t L_{i,t} with the constant L = max completion length (Dr. GRPO 2503.20783).

    Args:
        losses: (B, T), or (B, 1), which is broadcast over T.
        mask: (B, T).
        window: totals of the accumulation window.

    Returns:
        A scalar, this part's share of the window's loss.
    """
    return masked_sum(losses.expand_as(mask), mask) / (window.rows * window.max_completion_length)


def group_sum(losses: Tensor, mask: Tensor, window: Window) -> Tensor:
    """(1/P) Σ_p Σ_{i∈p} (1/|o_i|) Σ_t L_{i,t}: summed over a prompt's group, mean over the P prompts.

    This is DeepSeekMath's eq. 3 without its 1/G; a loss of shape (B, 1) counts once an output.

    Args:
        losses: (B, T), or (B, 1), which is broadcast over T.
        mask: (B, T).
        window: totals of the accumulation window.

    Returns:
        A scalar, this part's share of the window's loss.
    """
    return seq_mean_token_mean(losses, mask, window) * window.group_size


AGGREGATIONS: dict[str, Callable[[Tensor, Tensor, Window], Tensor]] = {
    "token_mean": token_mean,
    "part_token_mean": part_token_mean,
    "seq_mean_token_mean": seq_mean_token_mean,
    "seq_mean_token_sum": seq_mean_token_sum,
    "seq_mean_token_sum_norm": seq_mean_token_sum_norm,
    "group_sum": group_sum,
}
