"""Advantages from rewards of the steps of a solution.

Step rewards are (B, S) with NaN where a completion has fewer steps, or where a step could not be scored: such a place
is left out of every statistic and of every sum. Everything else follows the outcome path (`ops.advantages`).
"""

import torch
from torch import Tensor

from grpo_ext.ops.advantages import advantages


def normalised_steps(
    step_rewards: Tensor, groups: Tensor, baseline: str = "mean", scale: str = "group", eps: float = 1e-4
) -> Tensor:
    """r̃ = (r − mean R)/(std R + ε) over all steps R of all completions of a group (DeepSeekMath 2402.03300, 4.1.3).

    The convention is that of the outcome path, hence TRL's: Bessel-corrected std, ε outside the root, and exactly 0
    for a group whose steps all have one reward.

    Args:
        step_rewards: (B, S) reward of each step, NaN where there is none.
        groups: (B,) group index of each row, from 0.
        baseline: a key of `BASELINES`; "mean" is the paper's.
        scale: a key of `SCALES`; "group" is the paper's.
        eps: ε of the scale.

    Returns:
        (B, S); 0 where there is no reward.
    """
    if not step_rewards.numel():
        return torch.zeros_like(step_rewards)
    of_steps = groups[:, None].expand_as(step_rewards).flatten()
    return advantages(step_rewards.flatten(), of_steps, baseline, scale, eps).view_as(step_rewards)


def summed_from_the_right(values: Tensor, step_ends: Tensor, num_tokens: int) -> Tensor:
    """A_{i,t} = Σ_{k: end(k) ≥ t} r̃_{i,k}; tokens after the last step get 0 (DeepSeekMath 2402.03300, sec. 4.1.3).

    Args:
        values: (B, S) normalised rewards, 0 where there is no step.
        step_ends: (B, S) index of each step's last token in its completion; read only where the value is not 0, so
            any index inside the row may stand elsewhere.
        num_tokens: T.

    Returns:
        (B, T).
    """
    at_end = values.new_zeros(len(values), num_tokens).scatter_add_(1, step_ends, values)
    return at_end.flip(1).cumsum(1).flip(1)
