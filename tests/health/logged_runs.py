"""Logs of runs that never were: healthy ones with the statistics of real quickstart logs, and one for each illness."""

import math
import random
from collections.abc import Callable
from typing import Any

Rows = list[dict[str, Any]]


def healthy(seed: int, steps: int = 36) -> Rows:
    """Reward 0.1 to 0.65 with noise 0.1, entropy 1.3 to 0.06, half of the groups dead: as the quickstart logs."""
    draw = random.Random(seed)
    rows = []
    for step in range(steps):
        left = math.exp(-step / 6)
        reward = 0.65 - 0.55 * left + draw.gauss(0, 0.1)
        rows.append(
            {
                "loss": draw.gauss(0.005, 0.01),
                "reward": reward,
                "rewards/correct/mean": reward,
                "frac_reward_zero_std": min(1.0, max(0.0, draw.gauss(0.55, 0.13))),
                "entropy": (0.06 + 1.2 * left) * math.exp(draw.gauss(0, 0.25)),
                "grad_norm": 0.35 * math.exp(draw.gauss(0, 0.4)),
                "completions/mean_length": 15 + 4 * left + draw.gauss(0, 0.5),
                "completions/clipped_ratio": max(0.0, 0.2 * left + draw.gauss(0, 0.02)),
                "clip_ratio/region_mean": 0.0,
            }
        )
    return rows


def changed(rows: Rows, **series: Callable[[int], Any]) -> Rows:
    """Rows with other values; a name is written with `__` for each slash."""
    named = {name.replace("__", "/"): make for name, make in series.items()}
    return [{**row, **{name: make(at) for name, make in named.items()}} for at, row in enumerate(rows)]


def risen(seed: int, steps: int, start: float, end: float, noise: float = 0.05) -> Callable[[int], float]:
    draw = random.Random(1000 + seed)
    values = [start + (end - start) * at / (steps - 1) + draw.gauss(0, noise) for at in range(steps)]
    return values.__getitem__


def slow_and_long(seed: int) -> Rows:
    """160 steps that still learn at the end, with KL."""
    rise, kl = risen(seed, 160, 0.2, 0.7), risen(seed, 160, 0.0, 0.15, 0.01)
    entropy = risen(seed + 1, 160, 0.6, 0.3, 0.02)
    return changed(healthy(seed, 160), reward=rise, rewards__correct__mean=rise, kl=kl, entropy=entropy)


def longer_reasoning(seed: int) -> Rows:
    """Answers become right by becoming longer, with a format that is learned at once."""
    rise, length = risen(seed, 90, 0.2, 0.6), risen(seed, 90, 300, 900, 20)
    draw = random.Random(seed)
    shape = [min(1.0, 0.4 + 0.1 * at + draw.gauss(0, 0.02)) for at in range(90)]
    rows = changed(
        healthy(seed, 90),
        rewards__correct__mean=rise,
        rewards__format__mean=shape.__getitem__,
        completions__mean_length=length,
        entropy=risen(seed, 90, 0.5, 0.4, 0.03),
    )
    return changed(rows, reward=lambda at: rise(at) + shape[at])


def served(seed: int) -> Rows:
    """Sampled by vLLM in bfloat16."""
    draw = random.Random(seed)
    return changed(
        healthy(seed, 60), sampling__sampling_logp_difference__mean=lambda at: abs(draw.gauss(0.011, 0.002))
    )


def sequence_ratio(seed: int) -> Rows:
    """GSPO, which clips 15 % of its ratios when all is well."""
    draw = random.Random(seed)
    return changed(healthy(seed, 60), clip_ratio__region_mean=lambda at: abs(draw.gauss(0.15, 0.03)))


def hard_beginning(seed: int) -> Rows:
    """Few rewards at first: three groups in four are dead, and some steps have no gradient."""
    draw = random.Random(seed)
    rise = risen(seed, 80, 0.02, 0.5, 0.03)
    return changed(
        healthy(seed, 80),
        reward=rise,
        rewards__correct__mean=rise,
        frac_reward_zero_std=lambda at: min(1.0, draw.gauss(0.75 if at < 30 else 0.5, 0.06)),
        grad_norm=lambda at: 0.0 if at < 30 and draw.random() < 0.3 else 0.3 * math.exp(draw.gauss(0, 0.4)),
        entropy=risen(seed, 80, 1.0, 0.4, 0.03),
    )


HEALTHY: dict[str, Callable[[int], Rows]] = {
    "quickstart": healthy,
    "slow_and_long": slow_and_long,
    "longer_reasoning": longer_reasoning,
    "served": served,
    "sequence_ratio": sequence_ratio,
    "hard_beginning": hard_beginning,
}


def dead(seed: int) -> Rows:
    draw = random.Random(seed)
    return changed(healthy(seed), frac_reward_zero_std=lambda at: min(1.0, draw.gauss(0.5 if at < 15 else 0.96, 0.02)))


def flat(seed: int, steps: int = 130) -> Rows:
    level = risen(seed, steps, 0.3, 0.3)
    return changed(
        healthy(seed, steps), reward=level, rewards__correct__mean=level, entropy=risen(seed, steps, 0.5, 0.4, 0.03)
    )


def drifting(seed: int) -> Rows:
    return changed(healthy(seed), kl=risen(seed, 36, 0.0, 2.0, 0.02))


def collapsed(seed: int) -> Rows:
    """The entropy is gone, and the reward is higher for it."""
    draw = random.Random(seed)
    return changed(healthy(seed), entropy=lambda at: (0.003 + math.exp(-at / 4)) * math.exp(draw.gauss(0, 0.2)))


def squandered(seed: int) -> Rows:
    """The entropy falls as in a healthy run, and nothing rises."""
    level = risen(seed, 36, 0.3, 0.3)
    return changed(healthy(seed), reward=level, rewards__correct__mean=level)


def clipped(seed: int) -> Rows:
    draw = random.Random(seed)
    return changed(healthy(seed), clip_ratio__region_mean=lambda at: draw.gauss(0.01 if at < 10 else 0.5, 0.005))


def padded_answers(seed: int) -> Rows:
    """A reward for length is earned, the true one stays."""
    correct, length = risen(seed, 60, 0.3, 0.3), risen(seed, 60, 40, 160, 4)
    rows = changed(
        healthy(seed, 60),
        rewards__correct__mean=correct,
        rewards__long__mean=lambda at: length(at) / 200,
        completions__mean_length=length,
        entropy=risen(seed, 60, 0.8, 0.6, 0.03),
    )
    return changed(rows, reward=lambda at: correct(at) + length(at) / 200)


def rambling(seed: int) -> Rows:
    """Completions grow and the only reward stays."""
    level = risen(seed, 60, 0.3, 0.3)
    return changed(
        healthy(seed, 60),
        reward=level,
        rewards__correct__mean=level,
        completions__mean_length=risen(seed + 1, 60, 100, 260, 5),
        entropy=risen(seed, 60, 0.8, 0.6, 0.03),
    )


def cut_off(seed: int) -> Rows:
    draw = random.Random(seed)
    return changed(healthy(seed), completions__clipped_ratio=lambda at: draw.gauss(0.6, 0.05))


def apart(seed: int) -> Rows:
    correct, shape = risen(seed, 60, 0.7, 0.4), risen(seed + 1, 60, 0.2, 0.9)
    rows = changed(
        healthy(seed, 60),
        rewards__correct__mean=correct,
        rewards__format__mean=shape,
        entropy=risen(seed, 60, 0.8, 0.6, 0.03),
    )
    return changed(rows, reward=lambda at: correct(at) + shape(at))


def spiking(seed: int) -> Rows:
    rows = healthy(seed)
    return changed(rows, grad_norm=lambda at: 9.0 if at == 25 else rows[at]["grad_norm"])


def overflown(seed: int) -> Rows:
    rows = healthy(seed)
    return changed(rows, grad_norm=lambda at: math.nan if at == 25 else rows[at]["grad_norm"])


def mismatched(seed: int) -> Rows:
    return changed(healthy(seed), sampling__sampling_logp_difference__mean=risen(seed, 36, 0.01, 0.15, 0.005))


# Detector and the runs on which it must speak, and speak alone.
ILL: dict[str, list[Callable[[int], Rows]]] = {
    "dead_groups": [dead],
    "reward_plateau": [flat],
    "kl_drift": [drifting],
    "entropy_collapse": [collapsed, squandered],
    "clip_saturation": [clipped],
    "length_hacking": [padded_answers, rambling],
    "truncated_completions": [cut_off],
    "parts_apart": [apart],
    "gradient_spikes": [spiking, overflown],
    "sampler_mismatch": [mismatched],
}
