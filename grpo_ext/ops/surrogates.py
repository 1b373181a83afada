"""Surrogate objectives: what becomes of an advantage and a ratio, as a loss to minimise."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from grpo_ext.ops.masking import masked_mean, masked_sum


@dataclass(frozen=True)
class Clipping:
    """Constants of the surrogates, each named as the config's field.

    Attributes:
        epsilon: lower clip range.
        epsilon_high: upper clip range; for CISPO the absolute cap of the ratio, for GMPO both ranges are in log space.
        delta: second, upper clip of the unclipped term, or None.
        tau_pos: SAPO's temperature for A > 0.
        tau_neg: SAPO's temperature for A <= 0.
        gamma: VESPO's (k_pos, lambda_pos, k_neg, lambda_neg).
    """

    epsilon: float = 0.2
    epsilon_high: float = 0.2
    delta: float | None = None
    tau_pos: float = 1.0
    tau_neg: float = 1.05
    gamma: tuple[float, float, float, float] = (2.0, 3.0, 3.0, 2.0)


@dataclass(frozen=True)
class Terms:
    """What a surrogate may use.

    Attributes:
        log_ratio: (B, T) or (B, 1), at the level of the ratio, with gradient.
        token_log_ratio: (B, T) log w_t, with gradient.
        logps: (B, T) log-probabilities under the policy, with gradient.
        advantages: (B, 1) or (B, T).
        mask: (B, T).
        sampling_ratio: (B, T) or (B, 1) correction for the sampler, or None.
    """

    log_ratio: Tensor
    token_log_ratio: Tensor
    logps: Tensor
    advantages: Tensor
    mask: Tensor
    sampling_ratio: Tensor | None = None


def clip(terms: Terms, clipping: Clipping) -> Tensor:
    """−min(w A, clip(w, 1−ε_low, 1+ε_high) A) (PPO 1707.06347 eq. 7); with δ the first w is capped at δ.

    Args:
        terms: ratio, advantages and mask.
        clipping: ε, ε_high and δ.

    Returns:
        Losses, (B, T) or (B, 1).
    """
    ratio = torch.exp(terms.log_ratio)
    clipped = torch.clamp(ratio, 1 - clipping.epsilon, 1 + clipping.epsilon_high)
    if clipping.delta is not None:
        ratio = torch.clamp(ratio, max=clipping.delta)
    return -torch.min(ratio * terms.advantages, clipped * terms.advantages)


def none(terms: Terms, clipping: Clipping) -> Tensor:
    """−w A, the importance-weighted policy gradient without a trust region.

    Args:
        terms: ratio and advantages.
        clipping: unused.

    Returns:
        Losses, (B, T) or (B, 1).
    """
    return -torch.exp(terms.log_ratio) * terms.advantages


def reinforce(terms: Terms, clipping: Clipping) -> Tensor:
    """−A log π(o_t), the plain policy gradient, with no ratio at all.

    Args:
        terms: log-probabilities and advantages.
        clipping: unused.

    Returns:
        Losses, (B, T).
    """
    return -terms.advantages * terms.logps


def cispo(terms: Terms, clipping: Clipping) -> Tensor:
    """−sg[min(w, cap)] A log π(o_t): the weight is capped, no token's gradient is lost (CISPO 2506.13585, eq. 4, 5).

    Args:
        terms: ratio, log-probabilities and advantages.
        clipping: `epsilon_high` is the absolute cap.

    Returns:
        Losses, (B, T).
    """
    weight = torch.clamp(torch.exp(terms.log_ratio), max=clipping.epsilon_high).detach()
    return -weight * terms.advantages * terms.logps


def geometric(terms: Terms, clipping: Clipping) -> Tensor:
    """−A exp((1/|o|) Σ_t s min(s log w_t, s clip(log w_t, −ε_low, ε_high))), s = sign A (GMPO 2507.20673, eq. 4).

    The clip is per token and in log space, before the geometric mean is taken.

    Args:
        terms: token ratios, advantages and mask.
        clipping: ε and ε_high in log space (the paper: 0.4, ratios between e^−0.4 and e^0.4).

    Returns:
        Losses, (B, 1), or (B, T) with advantages of a token each.
    """
    sign = torch.where(terms.advantages >= 0, 1.0, -1.0).to(terms.logps.dtype)
    log_w = terms.token_log_ratio
    clipped = torch.clamp(log_w, -clipping.epsilon, clipping.epsilon_high)
    kept = sign * torch.min(sign * log_w, sign * clipped)
    return -terms.advantages * torch.exp(masked_mean(kept, terms.mask, dim=1)).unsqueeze(1)


def soft(terms: Terms, clipping: Clipping) -> Tensor:
    """−A σ(τ(w − 1)) 4/τ with τ by the sign of A: a soft gate instead of a clip (SAPO 2511.20347, eq. 5, 6).

    Args:
        terms: ratio and advantages.
        clipping: τ_pos for A > 0 and τ_neg else.

    Returns:
        Losses, (B, T) or (B, 1).
    """
    tau = torch.where(terms.advantages > 0, clipping.tau_pos, clipping.tau_neg).to(terms.logps.dtype)
    return -torch.sigmoid(tau * (torch.exp(terms.log_ratio) - 1)) * 4 / tau * terms.advantages


def gamma(terms: Terms, clipping: Clipping) -> Tensor:
    """−sg[φ(W)] A log π(o_t), φ(W) = W^k e^{λ(1−W)}, W = Π_t w_t, k and λ by the sign of A (VESPO 2602.10693, eq. 20).

    Logarithms are bounded as in TRL's `vespo`: each token to ±20, the product's to [log 1e-8, 20]; the correction
    for the sampler is part of W.

    Args:
        terms: token ratios, log-probabilities, advantages, mask, sampling ratio.
        clipping: `gamma`, the four constants.

    Returns:
        Losses, (B, T).
    """
    floor = math.log(1e-8)
    k_pos, lambda_pos, k_neg, lambda_neg = clipping.gamma
    with torch.no_grad():
        log_w = masked_sum(terms.token_log_ratio.clamp(-20, 20), terms.mask, dim=1).unsqueeze(1)
        if terms.sampling_ratio is not None:
            log_w = log_w + torch.log(terms.sampling_ratio).clamp(floor, 20).sum(dim=1, keepdim=True)
        log_w = log_w.clamp(floor, 20)
        positive = terms.advantages >= 0
        k = torch.where(positive, k_pos, k_neg).to(log_w.dtype)
        lam = torch.where(positive, lambda_pos, lambda_neg).to(log_w.dtype).clamp(min=1e-4)
        phi = torch.exp(lam + k * log_w - lam * torch.exp(log_w)).nan_to_num(0.0, 0.0, 0.0)
    return -phi * terms.advantages * terms.logps


def clipped_tokens(terms: Terms, clipping: Clipping) -> dict[str, Tensor]:
    """Where `clip` stops the gradient, under the names of TRL's metrics.

    Args:
        terms: ratio and advantages.
        clipping: ε, ε_high and δ.

    Returns:
        Values of 0 and 1, each (B, T) or (B, 1).
    """
    ratio = torch.exp(terms.log_ratio.detach())
    # TRL counts after the cap by delta
    ratio = ratio if clipping.delta is None else ratio.clamp(max=clipping.delta)
    low = (ratio < 1 - clipping.epsilon) & (terms.advantages < 0)
    high = (ratio > 1 + clipping.epsilon_high) & (terms.advantages > 0)
    return _shares(low, high)


def capped_tokens(terms: Terms, clipping: Clipping) -> dict[str, Tensor]:
    """Where `cispo` caps a weight of A > 0, under the name of TRL's metric.

    Args:
        terms: ratio and advantages.
        clipping: `epsilon_high` is the absolute cap.

    Returns:
        Values of 0 and 1, (B, T) or (B, 1).
    """
    ratio = torch.exp(terms.log_ratio.detach())
    return {"cispo_clip_ratio": ((ratio > clipping.epsilon_high) & (terms.advantages > 0)).float()}


def clipped_log_ratios(terms: Terms, clipping: Clipping) -> dict[str, Tensor]:
    """Where `geometric` stops a token's gradient, under the names of TRL's metrics.

    Args:
        terms: token ratios and advantages.
        clipping: ε and ε_high in log space.

    Returns:
        Values of 0 and 1, each (B, T).
    """
    log_w = terms.token_log_ratio.detach()
    low = (log_w < -clipping.epsilon) & (terms.advantages < 0)
    high = (log_w > clipping.epsilon_high) & (terms.advantages > 0)
    return _shares(low, high)


def _shares(low: Tensor, high: Tensor) -> dict[str, Tensor]:
    found = {"clip_ratio/low": low, "clip_ratio/high": high, "clip_ratio/region": low | high}
    return {name: where.float() for name, where in found.items()}


def _no_metrics(terms: Terms, clipping: Clipping) -> dict[str, Tensor]:
    return {}


@dataclass(frozen=True)
class Surrogate:
    """A row of the axis: the loss, and what the rest of the package has to know about it.

    Attributes:
        loss: losses to minimise, (B, T) or (B, 1).
        constants: sign in the formula -> field of `Clipping`.
        ratio: "level" for the ratio of `importance_sampling_level`, "own" for one that the surrogate forms of all
            tokens of a completion, "none" for a loss without a ratio.
        ratio_has_gradient: False where the ratio is a mere weight and the gradient that of log π(o_t).
        corrects_sampler: whether the loss makes use of `Terms.sampling_ratio`, which must not be applied again.
        stated: field of a config that has to be set -> what it is, where the default of another surrogate is no value.
        metrics: (B, T) or (B, 1) values of 0 and 1 that are worth logging.
    """

    loss: Callable[[Terms, Clipping], Tensor]
    constants: Mapping[str, str] = field(default_factory=dict)
    ratio: Literal["level", "own", "none"] = "level"
    ratio_has_gradient: bool = True
    corrects_sampler: bool = False
    stated: Mapping[str, str] = field(default_factory=dict)
    metrics: Callable[[Terms, Clipping], dict[str, Tensor]] = _no_metrics


SURROGATES: dict[str, Surrogate] = {
    "clip": Surrogate(clip, {"ε_low": "epsilon", "ε_high": "epsilon_high", "δ": "delta"}, metrics=clipped_tokens),
    "none": Surrogate(none),
    "reinforce": Surrogate(reinforce, ratio="none"),
    "cispo": Surrogate(
        cispo,
        {"cap": "epsilon_high"},
        ratio_has_gradient=False,
        stated={"epsilon_high": "the absolute cap of a ratio here, such as 5.0"},
        metrics=capped_tokens,
    ),
    "geometric": Surrogate(
        geometric, {"ε_low": "epsilon", "ε_high": "epsilon_high"}, ratio="own", metrics=clipped_log_ratios
    ),
    "soft": Surrogate(soft, {"τ of A > 0": "tau_pos", "τ of A ≤ 0": "tau_neg"}),
    "gamma": Surrogate(
        gamma,
        {"k and λ of A ≥ 0, of A < 0": "gamma"},
        ratio="own",
        ratio_has_gradient=False,
        corrects_sampler=True,
    ),
}
