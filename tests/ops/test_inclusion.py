"""Estimates from samples without replacement against the expectations that they estimate, on a handful of outcomes."""

import pytest
import torch

from grpo_ext.ops.inclusion import advantages_without_replacement, log_inclusion_weights

DRAWS = 1_000_000
LOGITS = torch.tensor([1.5, 0.2, -0.4, 0.9], dtype=torch.double)
REWARDS = torch.tensor([1.0, 3.0, -2.0, 0.5], dtype=torch.double)


def drawn(size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Outcomes, their log-probabilities and log-weights, (DRAWS, size) each."""
    logps = LOGITS.log_softmax(0)
    noise = (
        -torch.empty(DRAWS, 4, dtype=torch.double).exponential_(generator=torch.Generator().manual_seed(size)).log()
    )
    keys, order = (logps + noise).sort(1, descending=True)
    threshold = keys[:, size : size + 1] if size < 4 else torch.full((DRAWS, 1), -torch.inf, dtype=torch.double)
    place = order[:, :size]
    return place, logps[place], log_inclusion_weights(logps[place], threshold)


def gradients(place: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Σ weight · ∇ log p by the logits, (DRAWS, 4)."""
    result = -weights.sum(1, keepdim=True) * LOGITS.softmax(0)
    return result.scatter_add_(1, place, weights)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_values_and_gradients_are_unbiased(size: int) -> None:
    place, logps, log_weights = drawn(size)
    p = LOGITS.softmax(0)
    exact = (p * REWARDS).sum()
    w, f = log_weights.exp(), REWARDS[place]
    value = (w * f).sum(1)
    assert abs(value.mean() - exact) <= 4 * value.std() / DRAWS**0.5 + 1e-12
    groups = torch.arange(DRAWS).repeat_interleave(size)
    flat = (f.flatten(), groups, logps.flatten(), log_weights.flatten())
    advantages = advantages_without_replacement(*flat).view(DRAWS, size)
    found = gradients(place, w * advantages)
    error = found.std(0) / DRAWS**0.5
    assert ((found.mean(0) - p * (REWARDS - exact)).abs() <= 4 * error + 1e-12).all()
    if size == 4:
        # Everything is in, so nothing is left to chance
        assert error.max() < 1e-12


@pytest.mark.parametrize("size", [2, 3])
def test_the_baseline_needs_its_correction(size: int) -> None:
    place, _, log_weights = drawn(size)
    p = LOGITS.softmax(0)
    w, f = log_weights.exp(), REWARDS[place]
    found = gradients(place, w * (f - (w * f).sum(1, keepdim=True)))
    error = found.std(0) / DRAWS**0.5
    assert ((found.mean(0) - p * (REWARDS - (p * REWARDS).sum())).abs() > 8 * error).any()


def test_rows_that_stand_for_nothing_and_unscored_ones_get_zero() -> None:
    rewards = torch.tensor([1.0, torch.nan, 2.0])
    logps = torch.tensor([0.5, 0.25, 0.25]).log()
    weights = torch.tensor([0.5, 0.25, 0.0]).log()
    found = advantages_without_replacement(rewards, torch.zeros(3, dtype=torch.long), logps, weights)
    # 1 · (1 − 0.5 + 0.5) − 0.5 · 1
    assert found.tolist() == [0.5, 0.0, 0.0]
