"""Laws of the advantages that hold for every baseline with every scale; a new row is picked up from its dict."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from grpo_ext.ops.advantages import BASELINES, SCALES, advantages, advantages_per_reward

COMPARING = [name for name in BASELINES if name != "none"]
SEEDS = st.integers(0, 2**31)

GROUPS = st.lists(st.integers(1, 6), min_size=1, max_size=4)


def make_rewards(sizes: list[int], seed: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    groups = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    rewards = torch.randint(-4, 5, (len(groups),), generator=draw).double() / 4
    return rewards, groups


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("baseline", COMPARING)
@settings(max_examples=15)
@given(sizes=GROUPS, seed=SEEDS, shift=st.integers(-50, 50))
def test_shift_of_the_rewards_changes_nothing(
    baseline: str, scale: str, sizes: list[int], seed: int, shift: int
) -> None:
    rewards, groups = make_rewards(sizes, seed)
    expected = advantages(rewards, groups, baseline, scale)
    torch.testing.assert_close(advantages(rewards + shift, groups, baseline, scale), expected, rtol=0, atol=1e-10)
    per_group = rewards + shift * (groups + 1)  # a harder and an easier prompt
    if scale != "batch" or baseline == "rank":
        found = advantages(per_group, groups, baseline, scale)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("scale", SCALES)
def test_without_a_baseline_a_shift_is_felt(scale: str) -> None:
    rewards, groups = torch.tensor([0.0, 1.0, 0.5]), torch.zeros(3, dtype=torch.long)
    difference = advantages(rewards + 3, groups, "none", scale) - advantages(rewards, groups, "none", scale)
    assert (difference > 1.0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reward", [0.3, 0.1, -0.7, 1.0, 1e-3, 1234.567])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("baseline", COMPARING)
def test_dead_group_gets_exactly_zero(baseline: str, scale: str, size: int, reward: float, dtype: torch.dtype) -> None:
    dead = torch.full((size,), reward, dtype=dtype)
    alone = torch.zeros(size, dtype=torch.long)
    assert advantages(dead, alone, baseline, scale).tolist() == [0.0] * size
    # Beside a living group, with a row that could not be scored
    rewards = torch.cat([dead, torch.tensor([torch.nan, 0.0, 1.0], dtype=dtype)])
    groups = torch.cat([alone, torch.tensor([0, 1, 1])])
    found = advantages(rewards, groups, baseline, scale)
    assert found[: size + 1].tolist() == [0.0] * (size + 1)
    assert found[-1] > 0 > found[-2]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("baseline", BASELINES)
@settings(max_examples=15)
@given(sizes=GROUPS, seed=SEEDS, extra=st.integers(1, 4))
def test_rows_that_were_not_scored_are_left_out(
    baseline: str, scale: str, sizes: list[int], seed: int, extra: int
) -> None:
    rewards, groups = make_rewards(sizes, seed)
    more = torch.randint(0, len(sizes), (extra,), generator=torch.Generator().manual_seed(seed))
    with_nan = torch.cat([rewards, torch.full((extra,), torch.nan, dtype=rewards.dtype)])
    found = advantages(with_nan, torch.cat([groups, more]), baseline, scale)
    expected = advantages(rewards, groups, baseline, scale)
    torch.testing.assert_close(found[: len(rewards)], expected, rtol=0, atol=1e-12)
    assert found[len(rewards) :].tolist() == [0.0] * extra


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("baseline", BASELINES)
@settings(max_examples=15)
@given(sizes=GROUPS, seed=SEEDS)
def test_groups_of_unequal_size_do_not_see_each_other(baseline: str, scale: str, sizes: list[int], seed: int) -> None:
    rewards, groups = make_rewards(sizes, seed)
    found = advantages(rewards, groups, baseline, scale)
    order = torch.randperm(len(rewards), generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(
        advantages(rewards[order], groups[order], baseline, scale), found[order], rtol=0, atol=1e-12
    )
    if scale == "batch":
        return
    for group in range(len(sizes)):
        one = groups == group
        alone = advantages(rewards[one], torch.zeros(int(one.sum()), dtype=torch.long), baseline, scale)
        torch.testing.assert_close(found[one], alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("baseline", COMPARING)
@settings(max_examples=15)
@given(sizes=GROUPS, seed=SEEDS)
def test_unscaled_advantages_sum_to_zero_and_keep_the_order(baseline: str, sizes: list[int], seed: int) -> None:
    rewards, groups = make_rewards(sizes, seed)
    found = advantages(rewards, groups, baseline, "none")
    sums = torch.zeros(len(sizes), dtype=torch.float64).index_add_(0, groups, found)
    assert sums.abs().max() < 1e-12
    peers = (groups.unsqueeze(0) == groups.unsqueeze(1)) & (rewards.unsqueeze(0) > rewards.unsqueeze(1))
    assert (found.unsqueeze(0) > found.unsqueeze(1))[peers].all()


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("baseline", COMPARING)
@settings(max_examples=10)
@given(sizes=st.lists(st.integers(2, 6), min_size=2, max_size=4), seed=SEEDS)
def test_per_reward_advantages(baseline: str, scale: str, sizes: list[int], seed: int) -> None:
    one, groups = make_rewards(sizes, seed)
    other, _ = make_rewards(sizes, seed + 1)
    weights = torch.tensor([1.0, 0.5])
    found = advantages_per_reward(torch.stack([one, other], 1), weights, groups, baseline, scale)
    # A reward that is the same for every completion of a prompt changes nothing
    constant = 0.3 * (groups + 1).double()
    with_constant = torch.stack([one, constant, other], 1)
    heavier = torch.tensor([1.0, 7.0, 0.5])
    if scale != "batch" or baseline == "rank":
        same = advantages_per_reward(with_constant, heavier, groups, baseline, scale)
        torch.testing.assert_close(same, found, rtol=0, atol=1e-9)
    # A row without any reward gets 0 and moves nobody
    missing = torch.cat([torch.stack([one, other], 1), torch.full((1, 2), torch.nan, dtype=torch.float64)])
    wider = advantages_per_reward(missing, weights, torch.cat([groups, groups[:1]]), baseline, scale)
    torch.testing.assert_close(wider[:-1], found, rtol=0, atol=1e-12)
    assert wider[-1] == 0.0
    assert abs(found.sum()) < 1e-9
