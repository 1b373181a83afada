"""Process supervision in numbers worked out by hand, its gradients through a loss, and the laws it must obey."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_ext.objective import Batch, Objective
from grpo_ext.ops.advantages import advantages
from grpo_ext.ops.aggregation import Window
from grpo_ext.ops.process import normalised_steps, summed_from_the_right

NAN = math.nan


def tensor(values: list) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def same(found: torch.Tensor, expected: list) -> None:
    torch.testing.assert_close(found, tensor(expected), rtol=0, atol=1e-9)


def process_advantages(
    rewards: torch.Tensor, ends: torch.Tensor, groups: torch.Tensor, num_tokens: int, eps: float = 1e-4
) -> torch.Tensor:
    return summed_from_the_right(normalised_steps(rewards, groups, eps=eps), ends, num_tokens)


# Two outputs with two steps each: mean 2 and variance 10/3 over all four, so (1, -2, -1, 2) / sqrt(10/3)
REWARDS = tensor([[3.0, 0.0], [1.0, 4.0]])
ENDS = torch.tensor([[1, 3], [0, 4]])
UNIT = 1 / math.sqrt(10 / 3)


def test_by_hand() -> None:
    found = process_advantages(REWARDS, ENDS, torch.tensor([0, 0]), num_tokens=6, eps=1e-14)
    expected = [[-1.0, -1.0, -2.0, -2.0, 0.0, 0.0], [1.0, 2.0, 2.0, 2.0, 2.0, 0.0]]
    same(found, [[UNIT * value for value in row] for row in expected])


def test_the_std_is_that_of_the_outcome_path() -> None:
    # Bessel-corrected, epsilon beside the std: 1 / (sqrt(10/3) + 0.5)
    found = normalised_steps(REWARDS, torch.tensor([0, 0]), eps=0.5)
    unit = 1 / (math.sqrt(10 / 3) + 0.5)
    same(found, [[unit, -2 * unit], [-unit, 2 * unit]])
    flat = advantages(REWARDS.flatten(), torch.zeros(4, dtype=torch.long), "mean", "group", 0.5)
    assert torch.equal(found.flatten(), flat)


def test_ragged_steps_by_hand() -> None:
    # Rewards 1, 0 and 2 with mean 1 and variance 1; the second output has one step, the third none
    rewards = tensor([[1.0, 0.0], [2.0, NAN], [NAN, NAN]])
    ends = torch.tensor([[0, 2], [1, 0], [0, 0]])
    found = process_advantages(rewards, ends, torch.tensor([0, 0, 0]), num_tokens=4, eps=1e-14)
    same(found, [[-1.0, -1.0, -1.0, 0.0], [1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])


def test_a_step_without_a_reward_belongs_to_the_next() -> None:
    rewards = tensor([[NAN, 1.0], [0.0, NAN]])
    ends = torch.tensor([[1, 3], [0, 3]])
    found = process_advantages(rewards, ends, torch.tensor([0, 0]), num_tokens=5, eps=1e-14)
    half = math.sqrt(0.5)
    same(found, [[half] * 4 + [0.0], [-half, 0.0, 0.0, 0.0, 0.0]])


def test_other_groups_do_not_count() -> None:
    found = process_advantages(REWARDS, ENDS, torch.tensor([0, 1]), num_tokens=5, eps=1e-14)
    root = math.sqrt(0.5)
    same(found, [[0.0, 0.0, -root, -root, 0.0], [0.0, root, root, root, root]])


def test_two_steps_that_end_at_one_token_both_count() -> None:
    same(summed_from_the_right(tensor([[1.0, 2.0]]), torch.tensor([[1, 1]]), 3), [[3.0, 3.0, 0.0]])


def test_other_axes() -> None:
    groups = torch.tensor([0, 0])
    same(normalised_steps(REWARDS, groups, "mean", "none"), [[1.0, -2.0], [-1.0, 2.0]])
    same(normalised_steps(REWARDS, groups, "none", "none"), REWARDS.tolist())
    # Leave one out: 4/3 of the distance from the mean
    same(normalised_steps(REWARDS, groups, "leave_one_out", "none"), [[4 / 3, -8 / 3], [-4 / 3, 8 / 3]])


def test_no_steps_at_all() -> None:
    nothing = torch.full((2, 1), NAN)
    assert process_advantages(nothing, torch.zeros(2, 1, dtype=torch.long), torch.tensor([0, 0]), 3).tolist() == (
        [[0.0] * 3] * 2
    )
    empty = torch.zeros(2, 0)
    assert process_advantages(empty, empty.long(), torch.tensor([0, 0]), 3).tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize("surrogate", ["clip", "none", "reinforce", "cispo"])
def test_gradients_by_hand(surrogate: str) -> None:
    """On policy the gradient of the mean over tokens is -A_t / (B |o|) at each token of the log-probabilities."""
    mask = torch.tensor([[1.0, 1.0, 1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0, 0.0, 0.0]], dtype=torch.float64)
    ends = torch.tensor([[1, 4], [0, 3]])
    advantage = process_advantages(REWARDS, ends, torch.tensor([0, 0]), num_tokens=6, eps=1e-14) * mask
    logps = torch.full((2, 6), -1.5, dtype=torch.float64, requires_grad=True)
    window = Window(rows=2.0, tokens=9.0, parts=1.0, group_size=2, max_completion_length=6)
    objective = Objective(surrogate, "seq_mean_token_mean")
    loss, _ = objective(Batch(logps=logps, advantages=advantage, mask=mask), window)
    loss.backward()
    expected = [[-1.0, -1.0, -2.0, -2.0, -2.0, 0.0], [1.0, 2.0, 2.0, 2.0, 0.0, 0.0]]
    scale = 1.0 if surrogate != "cispo" else 0.2  # its default cap
    lengths = (5, 4)
    assert logps.grad is not None
    same(
        logps.grad,
        [[-scale * UNIT * a / (2 * n) + 0.0 for a in row] for row, n in zip(expected, lengths, strict=True)],
    )


# Laws

shapes = st.tuples(st.integers(1, 6), st.integers(1, 5), st.integers(0, 10**6))


def drawn(rows: int, steps: int, seed: int, tokens: int = 9) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ragged rewards that are multiples of 1/8, ascending ends, and two groups."""
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.randint(-16, 17, (rows, steps), generator=generator).double() / 8
    counts = torch.randint(0, steps + 1, (rows, 1), generator=generator)
    rewards = rewards.masked_fill(torch.arange(steps) >= counts, NAN)
    ends = torch.randint(0, tokens, (rows, steps), generator=generator).sort(1).values
    return rewards, ends, torch.randint(0, 2, (rows,), generator=generator)


@settings(max_examples=60, deadline=None)
@given(shapes, st.sampled_from([-3.0, 0.5, 8.0]), st.sampled_from([0.25, 3.0]))
def test_shift_and_scale(shape: tuple[int, int, int], shift: float, scale: float) -> None:
    rewards, ends, groups = drawn(*shape)
    plain = process_advantages(rewards, ends, groups, 9, eps=1e-14)
    torch.testing.assert_close(process_advantages(rewards + shift, ends, groups, 9, eps=1e-14), plain)
    torch.testing.assert_close(process_advantages(scale * rewards, ends, groups, 9, eps=1e-14), plain)
    torch.testing.assert_close(process_advantages(-rewards, ends, groups, 9, eps=1e-14), -plain)


@settings(max_examples=60, deadline=None)
@given(shapes)
def test_one_step_at_the_end_is_outcome_supervision(shape: tuple[int, int, int]) -> None:
    rewards, _, groups = drawn(shape[0], 1, shape[2])
    lengths = torch.randint(1, 9, (len(rewards), 1), generator=torch.Generator().manual_seed(shape[2]))
    found = process_advantages(rewards, lengths - 1, groups, 9)
    outcome = advantages(rewards[:, 0], groups, "mean", "group")
    assert torch.equal(found, outcome[:, None] * (torch.arange(9) < lengths))


@settings(max_examples=40, deadline=None)
@given(shapes, st.sampled_from([0.3, 0.1, 7.7, 0.0]))
def test_equal_rewards_teach_nothing(shape: tuple[int, int, int], value: float) -> None:
    rewards, ends, groups = drawn(*shape)
    equal = torch.where(rewards.isnan(), NAN, value).float()
    assert not process_advantages(equal, ends, groups, 9).any()


@settings(max_examples=60, deadline=None)
@given(shapes)
def test_order_of_rows_and_of_groups_does_not_matter(shape: tuple[int, int, int]) -> None:
    rewards, ends, groups = drawn(*shape)
    order = torch.randperm(len(rewards), generator=torch.Generator().manual_seed(shape[2]))
    plain = process_advantages(rewards, ends, groups, 9)
    torch.testing.assert_close(process_advantages(rewards[order], ends[order], groups[order], 9), plain[order])
    torch.testing.assert_close(process_advantages(rewards, ends, 1 - groups, 9), plain)


@settings(max_examples=60, deadline=None)
@given(shapes)
def test_the_first_token_gets_the_sum_and_each_drop_is_a_step(shape: tuple[int, int, int]) -> None:
    rewards, ends, groups = drawn(*shape)
    values = normalised_steps(rewards, groups)
    found = process_advantages(rewards, ends, groups, 9)
    torch.testing.assert_close(found[:, 0], values.sum(1))
    dropped = found - torch.cat([found[:, 1:], torch.zeros(len(found), 1)], 1)
    torch.testing.assert_close(dropped, torch.zeros_like(found).scatter_add_(1, ends, values))
