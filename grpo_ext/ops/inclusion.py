"""Groups drawn without replacement: weights and advantages that keep a sum over the group unbiased.

Completions are the k with the highest keys, each key a Gumbel(log p); κ is the highest key left out (Kool et al. 2019,
1903.06059; Kool et al. 2020, 2002.06043).
"""

import torch
from torch import Tensor


def log_inclusion_weights(logps: Tensor, threshold: Tensor) -> Tensor:
    """log(p / q) with q = 1 − exp(−exp(log p − κ)), the probability that a key exceeds κ.

    Σ f p / q over the group is an unbiased estimate of E[f] (1903.06059, eq. 9).

    Args:
        logps: (P, G) log-probabilities of whole completions.
        threshold: (P, 1) κ; -inf where nothing was left out.

    Returns:
        (P, G).
    """
    exact = logps.double()
    return (exact - torch.log(-torch.expm1(-torch.exp(exact - threshold)))).to(logps.dtype)


def advantages_without_replacement(rewards: Tensor, groups: Tensor, logps: Tensor, log_weights: Tensor) -> Tensor:
    """A_i = f_i (1 − p_i + w_i) − Σ_j w_j f_j with w = p / q.

    For groups of two and more, Σ w_i A_i ∇log p_i is an unbiased estimate of ∇E[f]: the sum is a baseline, and what
    the completion itself adds to it is taken out again (Kool, van Hoof & Welling 2019, "Buy 4 REINFORCE Samples, Get a
    Baseline for Free!", the estimator for samples without replacement).

    Args:
        rewards: (R,) f, NaN where not scored.
        groups: (R,) group index of each row.
        logps: (R,) log-probabilities of whole completions.
        log_weights: (R,) log w; -inf for a row that stands for nothing.

    Returns:
        (R,); 0 where not scored.
    """
    f, p, w = rewards.double().nan_to_num(0.0), logps.double().exp(), log_weights.double().exp()
    baseline = torch.zeros_like(f).index_add_(0, groups, w * f)[groups]
    return (f * (1 - p + w) - baseline).masked_fill(rewards.isnan() | (w == 0), 0.0).to(rewards.dtype)
