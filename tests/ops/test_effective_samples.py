"""Kish's effective size of the advantages: bounds, exact cases, and sums that add up over batches."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grpo_ext.ops.advantages import advantages, effective_samples, weight_sums

WEIGHTS = st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=32)


def of(values: list[float]) -> float:
    weights = torch.tensor(values)
    return effective_samples(weight_sums(weights, torch.ones(len(values), 3))).item()


def test_equal_weights_count_each_row() -> None:
    assert of([1.0, -1.0, 1.0, -1.0]) == 4.0
    assert of([2.0, -2.0, 0.0, 0.0]) == 2.0
    assert of([0.0] * 4) == 0.0


def test_one_right_answer_of_eight() -> None:
    """Advantages 7a and seven times -a: (14 a)^2 / (49 + 7) a^2 = 3.5."""
    rewards = torch.tensor([1.0] + [0.0] * 7)
    values = advantages(rewards, torch.zeros(8, dtype=torch.long), "mean", "group")
    assert of(values.tolist()) == pytest.approx(3.5, rel=1e-5)


def test_what_rounding_leaves_of_a_dead_group_is_nothing() -> None:
    rewards = torch.full((7,), 0.3)
    left = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
    assert left.abs().max() > 0.0
    assert of(left.tolist()) == 0.0


def test_the_weight_of_a_row_is_its_mean_over_real_tokens() -> None:
    values = torch.tensor([[1.0, -3.0, 9.0], [2.0, 9.0, 9.0], [0.0, 0.0, 0.0]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1]])
    assert weight_sums(values, mask).tolist() == [4.0, 8.0]


@given(WEIGHTS)
def test_it_lies_between_nothing_and_the_rows(values: list[float]) -> None:
    assert 0.0 <= of(values) <= len(values) * (1 + 1e-5)


@given(WEIGHTS, WEIGHTS)
def test_sums_add_up_over_batches(one: list[float], other: list[float]) -> None:
    first, second, both = (weight_sums(torch.tensor(v), torch.ones(len(v), 1)) for v in (one, other, one + other))
    torch.testing.assert_close(first + second, both, rtol=1e-5, atol=1e-6)
