"""Advantages from rewards of the steps of a solution."""

import torch
from torch import Tensor

from grpo_ext.ops.advantages import advantages


def process_advantages(
    step_rewards: Tensor, step_ends: Tensor, rows: Tensor, groups: Tensor, num_tokens: int, eps: float = 1e-4
) -> Tensor:
    """A_{i,t} = Σ over the steps of output i that end at or after t of (r − mean R)/(std R + ε).

    The statistics run over all step rewards R of all G outputs of a question (DeepSeekMath 2402.03300, sec. 4.1.3).
    Tokens after the last step get 0.

    Args:
        step_rewards: (S,) reward of each step.
        step_ends: (S,) index of each step's last token in its completion.
        rows: (S,) row of each step.
        groups: (B,) group index of each row.
        num_tokens: T.
        eps: ε.

    Returns:
        (B, T) advantages.
    """
    normalised = advantages(step_rewards, groups[rows], "mean", "group", eps)
    at_end = step_rewards.new_zeros(len(groups), num_tokens).index_put_((rows, step_ends), normalised, accumulate=True)
    return torch.flip(torch.cumsum(torch.flip(at_end, [1]), 1), [1])
