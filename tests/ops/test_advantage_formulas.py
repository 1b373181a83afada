"""Every formula of the advantages against numbers computed by hand."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from grpo_ext.ops.advantages import BASELINES, SCALES, advantages, advantages_per_reward, dead_groups, ranks

NAN = math.nan


def tensor(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def same(found: Tensor, expected: object, atol: float = 1e-9) -> None:
    torch.testing.assert_close(found, tensor(expected), rtol=0, atol=atol)


# Advantages of the groups [1, 0, 0, 1] and [3, 1] with eps 0.25

REWARDS, GROUPS = [1.0, 0.0, 0.0, 1.0, 3.0, 1.0], [0, 0, 0, 0, 1, 1]
NUMERATORS = {
    "mean": [0.5, -0.5, -0.5, 0.5, 1.0, -1.0],
    "leave_one_out": [2 / 3, -2 / 3, -2 / 3, 2 / 3, 2.0, -2.0],
    # Two tie for the ranks 1 and 2: 2 - 4 (1.5 - 1)/3
    "rank": [4 / 3, -4 / 3, -4 / 3, 4 / 3, 2.0, -2.0],
    "none": REWARDS,
}
# Variances of the groups are 1/3 and 2, that of all six rewards is 6/5
REWARD_SCALES = {
    "group": [0.8273502692] * 4 + [1.6642135624] * 2,
    "group_eps_inside": [0.7637626158] * 4 + [1.5] * 2,
    "batch": [1.3454451150] * 6,
    "none": [1.0] * 6,
}
# Variances of the ranks are 64/27 and 8, that of all six 136/45
RANK_SCALES = {
    "group": [1.7896007178] * 4 + [3.0784271247] * 2,
    "group_eps_inside": [1.6187558094] * 4 + [2.8722813233] * 2,
    "batch": [1.9884539747] * 6,
    "none": [1.0] * 6,
}


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("baseline", BASELINES)
def test_advantages(baseline: str, scale: str) -> None:
    divisors = (RANK_SCALES if baseline == "rank" else REWARD_SCALES)[scale]
    expected = [over / under for over, under in zip(NUMERATORS[baseline], divisors, strict=True)]
    same(advantages(tensor(REWARDS), torch.tensor(GROUPS), baseline, scale, eps=0.25), expected)
    # The same rows in another order, with one that was not scored
    order = [5, 2, 0, 4, 3, 1]
    rewards = tensor([REWARDS[i] for i in order] + [NAN])
    found = advantages(rewards, torch.tensor([GROUPS[i] for i in order] + [0]), baseline, scale, eps=0.25)
    same(found, [expected[i] for i in order] + [0.0])


def test_advantages_default_to_the_eps_of_trl() -> None:
    found = advantages(tensor([0.0, 1.0]), torch.tensor([0, 0]), "mean", "group")
    same(found, [-0.5 / (math.sqrt(0.5) + 1e-4), 0.5 / (math.sqrt(0.5) + 1e-4)], atol=1e-12)


def test_ranks() -> None:
    groups = torch.zeros(5, dtype=torch.long)
    same(ranks(tensor([10.0, -3.0, 0.0, 0.1, 7.0]), groups), [2.0, -2.0, -1.0, 0.0, 1.0], atol=1e-12)
    same(ranks(tensor([1.0, 1.0, 1.0, 0.0, 0.0]), groups), [1.0, 1.0, 1.0, -1.5, -1.5], atol=1e-12)
    same(ranks(tensor([0.3] * 5), groups), [0.0] * 5, atol=0.0)
    found = ranks(tensor([NAN, 1.0, 0.0, NAN, 0.5]), groups)
    assert found.isnan().tolist() == [True, False, False, True, False]
    same(found[[1, 2, 4]], [2.0, -2.0, 0.0], atol=1e-12)
    same(ranks(tensor([4.0, 2.0]), torch.tensor([0, 1])), [0.0, 0.0], atol=0.0)
    # Groups of three, two and one whose rows lie between each other
    found = ranks(tensor([1.0, 9.0, 5.0, 3.0, 8.0, 7.0]), torch.tensor([2, 0, 2, 2, 0, 1]))
    same(found, [-2.0, 2.0, 2.0, 0.0, -2.0, 0.0], atol=0.0)
    assert ranks(tensor([]), torch.tensor([], dtype=torch.long)).tolist() == []


class Largest(TorchDispatchMode):
    """Numbers of the largest tensor that is made."""

    found = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            self.found = max(self.found, made.numel())
        return made


def test_ranks_look_at_one_group_at_a_time() -> None:
    rows = torch.arange(400)
    with Largest() as largest:
        found = ranks((rows % 4).double(), rows // 4)
    same(found[:4], [-2.0, -2 / 3, 2 / 3, 2.0], atol=1e-12)
    assert largest.found == 400


def test_dead_groups() -> None:
    rewards = tensor([0.3, 0.3, 0.3, 0.3, NAN, 0.1, 0.2, NAN, 5.0])
    groups = torch.tensor([0, 0, 0, 1, 1, 2, 2, 3, 4])
    assert dead_groups(rewards, groups).tolist() == [True] * 5 + [False] * 2 + [True] * 2


def test_per_reward_advantages() -> None:
    # The second reward weighs twice; the first is dead in the second group. Sums are -1, 1, -2, 2 over the square
    # root of 2, their variance is 5/3.
    rewards = tensor([[1.0, 0.0], [0.0, 4.0], [2.0, 0.0], [2.0, 1.0]])
    groups = torch.tensor([0, 0, 1, 1])
    found = advantages_per_reward(rewards, tensor([1.0, 2.0]), groups, "mean", "group", eps=1e-14)
    same(found, [-0.5477225575, 0.5477225575, -1.0954451150, 1.0954451150])
    # Unscaled parts are -1.5, 1.5, -0.5 and 0.5 times 1, with differences of 4 in the second: sums -3.5, 3.5, -1, 1
    found = advantages_per_reward(rewards, tensor([1.0, 2.0]), groups, "mean", "none", eps=1e-14)
    root = math.sqrt((2 * 3.5**2 + 2 * 1.0**2) / 3)
    same(found, [-3.5 / root, 3.5 / root, -1.0 / root, 1.0 / root])
