"""Levels at which the importance ratio between two policies is formed, as log-ratios."""

from collections.abc import Callable

from torch import Tensor

from grpo_ext.ops.masking import masked_mean, masked_sum


def token(logps: Tensor, base_logps: Tensor, mask: Tensor) -> Tensor:
    """log w_t = log π(o_t) − log π_base(o_t), one a token (DeepSeekMath 2402.03300, eq. 3).

    Args:
        logps: (B, T) log-probabilities under the policy, with gradient.
        base_logps: (B, T) log-probabilities under the policy of the denominator.
        mask: (B, T).

    Returns:
        (B, T) log-ratios.
    """
    return logps - base_logps


def sequence(logps: Tensor, base_logps: Tensor, mask: Tensor) -> Tensor:
    """log s = (1/|o|) Σ_t log w_t, the length-normalised ratio of the output (GSPO 2507.18071, eq. 7).

    Args:
        logps: (B, T) log-probabilities under the policy, with gradient.
        base_logps: (B, T) log-probabilities under the policy of the denominator.
        mask: (B, T).

    Returns:
        (B, 1) log-ratios.
    """
    return masked_mean(logps - base_logps, mask, dim=1).unsqueeze(1)


def sequence_token(logps: Tensor, base_logps: Tensor, mask: Tensor) -> Tensor:
    """log s_t = sg[log s] + log π(o_t) − sg[log π(o_t)]: the sequence's value, the token's gradient.

    GSPO-token, 2507.18071, eq. 13 and 14.

    Args:
        logps: (B, T) log-probabilities under the policy, with gradient.
        base_logps: (B, T) log-probabilities under the policy of the denominator.
        mask: (B, T).

    Returns:
        (B, T) log-ratios.
    """
    return sequence(logps, base_logps, mask).detach() + logps - logps.detach()


def sequence_sum(logps: Tensor, base_logps: Tensor, mask: Tensor) -> Tensor:
    """log Π_t w_t = Σ_t log w_t, the ratio of the whole output's probabilities, unnormalised.

    Its on-policy gradient is |o| times that of the other levels under a mean over tokens.

    Args:
        logps: (B, T) log-probabilities under the policy, with gradient.
        base_logps: (B, T) log-probabilities under the policy of the denominator.
        mask: (B, T).

    Returns:
        (B, 1) log-ratios.
    """
    return masked_sum(logps - base_logps, mask, dim=1).unsqueeze(1)


RATIO_LEVELS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "token": token,
    "sequence": sequence,
    "sequence_token": sequence_token,
    "sequence_sum": sequence_sum,
}
