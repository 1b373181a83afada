"""Advantages of a group: a baseline to compare with, times a scale to divide by.

Rewards are NaN where a completion could not be scored; such a row is left out of every statistic and gets 0.
All functions take flat rows and a group index per row, so groups may differ in size.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from grpo_ext.ops.masking import masked_mean

# In a dead group TRL leaves the rounding of its mean, divided by 1e-4
ROUNDING = 1e-3


def _sums(values: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """Sum and count over the scored rows of each row's group, (R,) each."""
    scored = ~values.isnan()
    size = int(groups.max()) + 1
    total = values.new_zeros(size).index_add_(0, groups, values.nan_to_num(0.0))
    count = values.new_zeros(size).index_add_(0, groups, scored.to(values.dtype))
    return total[groups], count[groups]


def group_mean(values: Tensor, groups: Tensor) -> Tensor:
    """Mean over the scored rows of each row's group.

    Args:
        values: (R,), NaN where not scored.
        groups: (R,) group index of each row.

    Returns:
        (R,).
    """
    total, count = _sums(values, groups)
    return total / count.clamp(min=1)


def group_std(values: Tensor, groups: Tensor) -> Tensor:
    """Bessel-corrected standard deviation over the scored rows of each row's group; 0 for fewer than two.

    Args:
        values: (R,), NaN where not scored.
        groups: (R,) group index of each row.

    Returns:
        (R,).
    """
    total, count = _sums((values - group_mean(values, groups)).square(), groups)
    return (total / (count - 1).clamp(min=1)).sqrt()


def dead_groups(values: Tensor, groups: Tensor) -> Tensor:
    """Which rows belong to a group without spread, by max − min = 0.

    Equal rewards such as 0.3 have a non-zero floating-point deviation from their mean, so the std cannot tell.

    Args:
        values: (R,), NaN where not scored.
        groups: (R,) group index of each row.

    Returns:
        (R,) bool.
    """
    size = int(groups.max()) + 1
    high = values.new_full((size,), -torch.inf).scatter_reduce_(0, groups, values.nan_to_num(-torch.inf), "amax")
    low = values.new_full((size,), torch.inf).scatter_reduce_(0, groups, values.nan_to_num(torch.inf), "amin")
    return (high <= low)[groups]


def ranks(rewards: Tensor, groups: Tensor) -> Tensor:
    """2 − 4 (rank − 1)/(n − 1) with rank 1 the best, mid-ranks for ties: +2 for the best, −2 for the worst.

    GOPO 2602.03876. All tied gives 0.

    Args:
        rewards: (R,), NaN where not scored.
        groups: (R,) group index of each row.

    Returns:
        (R,), NaN where not scored.
    """
    result = torch.full_like(rewards, torch.nan)
    # All rows against all would take R² places
    for rows in groups.argsort(stable=True).split(groups.bincount().tolist()):
        scored = rows[~rewards[rows].isnan()]
        own, count = rewards[scored], len(scored)
        better = (own > own[:, None]).sum(1)
        tied = (own == own[:, None]).sum(1)
        position = better + (tied - 1).to(own.dtype) / 2  # rank − 1
        result[scored] = 2 - 4 * position / (count - 1) if count > 1 else torch.zeros_like(own)
    return result


def mean(rewards: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """r_i against the mean of the group (DeepSeekMath 2402.03300, sec. 4.1.2).

    Args:
        rewards: (R,), NaN where not scored.
        groups: (R,) group index of each row.

    Returns:
        Values and baselines, (R,) each.
    """
    return rewards, group_mean(rewards, groups)


def leave_one_out(rewards: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """r_i against the mean of the others, which is G/(G−1) (r_i − mean r) (RLOO 2402.14740).

    Args:
        rewards: (R,), NaN where not scored.
        groups: (R,) group index of each row.

    Returns:
        Values and baselines, (R,) each.
    """
    total, count = _sums(rewards, groups)
    return rewards, (total - rewards) / (count - 1).clamp(min=1)


def rank(rewards: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """Centred rank inside the group, whatever the size of the rewards (GOPO 2602.03876).

    Args:
        rewards: (R,), NaN where not scored.
        groups: (R,) group index of each row.

    Returns:
        Values and baselines, (R,) each.
    """
    return ranks(rewards, groups), torch.zeros_like(rewards)


def none(rewards: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """The reward itself, compared with nothing; alone among the baselines it feels a shift of the rewards.

    Args:
        rewards: (R,), NaN where not scored.
        groups: (R,) group index of each row.

    Returns:
        Values and baselines, (R,) each.
    """
    return rewards, torch.zeros_like(rewards)


def no_scale(values: Tensor, groups: Tensor, eps: float) -> Tensor:
    """1 (Dr. GRPO 2503.20783).

    Args:
        values: (R,).
        groups: (R,).
        eps: unused.

    Returns:
        Divisors, (R,).
    """
    return torch.ones_like(values)


def group_scale(values: Tensor, groups: Tensor, eps: float) -> Tensor:
    """std of the group + ε (DeepSeekMath 2402.03300, sec. 4.1.2; TRL: Bessel-corrected, ε = 1e-4).

    Args:
        values: (R,).
        groups: (R,).
        eps: ε.

    Returns:
        Divisors, (R,).
    """
    return group_std(values, groups) + eps


def group_eps_inside(values: Tensor, groups: Tensor, eps: float) -> Tensor:
    """√(var of the group + ε).

    Args:
        values: (R,).
        groups: (R,).
        eps: ε.

    Returns:
        Divisors, (R,).
    """
    return (group_std(values, groups).square() + eps).sqrt()


def batch_scale(values: Tensor, groups: Tensor, eps: float) -> Tensor:
    """std of the rewards of the whole batch + ε (2508.08221).

    Args:
        values: (R,).
        groups: (R,).
        eps: ε.

    Returns:
        Divisors, (R,).
    """
    return group_std(values, torch.zeros_like(groups)) + eps


BASELINES: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "mean": mean,
    "leave_one_out": leave_one_out,
    "rank": rank,
    "none": none,
}

SCALES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "group": group_scale,
    "group_eps_inside": group_eps_inside,
    "batch": batch_scale,
    "none": no_scale,
}


def advantages(rewards: Tensor, groups: Tensor, baseline: str, scale: str, eps: float = 1e-4) -> Tensor:
    """A_i = (v_i − b_i) / s_i with values and baseline from one axis and the scale from the other.

    A group without spread gets exactly 0 from every baseline that compares inside the group.

    Args:
        rewards: (R,), NaN where not scored.
        groups: (R,) group index of each row, from 0.
        baseline: a key of `BASELINES`.
        scale: a key of `SCALES`.
        eps: ε of the scale.

    Returns:
        (R,) in the dtype of `rewards`; 0 where not scored.
    """
    exact = rewards.double()
    values, baselines = BASELINES[baseline](exact, groups)
    result = (values - baselines) / SCALES[scale](values, groups, eps)
    if baseline != "none":
        result = result.masked_fill(dead_groups(exact, groups), 0.0)
    return result.nan_to_num(0.0).to(rewards.dtype)


def advantages_per_reward(
    rewards: Tensor, weights: Tensor, groups: Tensor, baseline: str, scale: str, eps: float = 1e-4
) -> Tensor:
    """Each reward made an advantage on its own, their weighted sum z-scored over the batch (GDPO 2601.05242).

    Args:
        rewards: (R, K), NaN where a reward function does not apply.
        weights: (K,).
        groups: (R,) group index of each row.
        baseline: a key of `BASELINES`.
        scale: a key of `SCALES`.
        eps: ε of both normalisations.

    Returns:
        (R,); 0 where no reward function applies.
    """
    parts = [advantages(column, groups, baseline, scale, eps) for column in rewards.double().unbind(1)]
    total = torch.stack(parts, 1) @ weights.double()
    total = total.masked_fill(rewards.isnan().all(1), torch.nan)
    whole = torch.zeros_like(groups)
    return advantages(total, whole, "mean", "group", eps).to(rewards.dtype)


def weight_sums(advantages: Tensor, mask: Tensor) -> Tensor:
    """Σ w and Σ w² over rows, w = |A| (its mean over a row's tokens); both add up over batches and processes.

    Args:
        advantages: (B,), or (B, T) with an advantage a token.
        mask: (B, T), 1 for a real token.

    Returns:
        (2,); a weight below `ROUNDING` counts as 0.
    """
    size = advantages.abs().float()
    weights = size if size.dim() == 1 else masked_mean(size, mask, dim=1)
    weights = torch.where(weights < ROUNDING, torch.zeros_like(weights), weights)
    return torch.stack([weights.sum(), (weights * weights).sum()])


def effective_samples(sums: Tensor) -> Tensor:
    """(Σ w)² / Σ w², how many equally weighted samples have the variance of these (Kish 1965, Survey Sampling).

    Args:
        sums: (2,) from `weight_sums`.

    Returns:
        A scalar between 0, when all groups are dead, and the number of rows.
    """
    return torch.where(sums[1] > 0, sums[0] ** 2 / sums[1], torch.zeros_like(sums[0]))
