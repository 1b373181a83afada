"""Estimators of the KL divergence from samples, and rules that adapt its coefficient.

With x = log π − log π_ref at a token sampled from the policy, the mean of k1 and k3 is KL(π‖π_ref), that of k2
only to second order in x.
As losses they differ: k1 has zero expected gradient, k2 has the gradient of KL(π‖π_ref), k3 that of KL(π_ref‖π).
"""

from collections.abc import Callable

import torch
from torch import Tensor


def k1(log_ratio: Tensor, weight: Tensor) -> Tensor:
    """k1 = x: unbiased, high variance, and no expected gradient, so it belongs in the reward or the metrics.

    Args:
        log_ratio: x, (B, T).
        weight: importance weight of the token, (B, T) or (B, 1); unused.

    Returns:
        (B, T).
    """
    return log_ratio


def k2(log_ratio: Tensor, weight: Tensor) -> Tensor:
    """k2 = x²/2: biased in value, and as a loss the gradient of KL(π‖π_ref).

    Args:
        log_ratio: x, (B, T).
        weight: importance weight of the token, (B, T) or (B, 1); unused.

    Returns:
        (B, T).
    """
    return 0.5 * log_ratio.square()


def k3(log_ratio: Tensor, weight: Tensor) -> Tensor:
    """k3 = e⁻ˣ − 1 + x ≥ 0: unbiased, low variance (DeepSeekMath 2402.03300, eq. 4).

    Args:
        log_ratio: x, (B, T).
        weight: importance weight of the token, (B, T) or (B, 1); unused.

    Returns:
        (B, T).
    """
    return torch.exp(-log_ratio) - 1 + log_ratio


def k3_corrected(log_ratio: Tensor, weight: Tensor) -> Tensor:
    """w · k3, whose on-policy gradient equals k2's (DeepSeek-V3.2 2512.02556).

    Args:
        log_ratio: x, (B, T).
        weight: w = π/π_old at the level of the ratio, with gradient, (B, T) or (B, 1).

    Returns:
        (B, T).
    """
    return weight * k3(log_ratio, weight)


def fixed(coefficient: float, kl: float, target: float) -> float:
    """β stays as it is.

    Args:
        coefficient: β.
        kl: measured KL of the last step, nats per token; unused.
        target: unused.

    Returns:
        The next β.
    """
    return coefficient


def ziegler(coefficient: float, kl: float, target: float) -> float:
    """β ← β (1 + 0.1 e), e = clip(KL/target − 1, −0.2, 0.2) (Ziegler et al. 1909.08593, sec. 2.2).

    Args:
        coefficient: β.
        kl: measured KL of the last step, nats per token.
        target: wished KL, in the same unit.

    Returns:
        The next β.
    """
    error = min(max(kl / target - 1.0, -0.2), 0.2)
    return coefficient * (1.0 + 0.1 * error)


def ppo(coefficient: float, kl: float, target: float) -> float:
    """β ← β/2 below target/1.5, 2β above 1.5 target (PPO 1707.06347, sec. 4).

    Args:
        coefficient: β.
        kl: measured KL of the last step, nats per token.
        target: wished KL, in the same unit.

    Returns:
        The next β.
    """
    if kl < target / 1.5:
        return coefficient / 2
    return coefficient * 2 if kl > target * 1.5 else coefficient


KL_ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "k1": k1,
    "k2": k2,
    "k3": k3,
    "k3_corrected": k3_corrected,
}

KL_CONTROLLERS: dict[str, Callable[[float, float, float], float]] = {
    "fixed": fixed,
    "ziegler": ziegler,
    "ppo": ppo,
}
