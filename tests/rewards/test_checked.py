"""The guard around reward functions: what passes, what is refused, and what TRL sees of it."""

import asyncio
import functools
import inspect
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
import torch
from trl.trainer.utils import get_callable_name, is_async_callable

from grpo_ext.rewards import REWARDS, checked, soft_overlong_penalty

CALL: dict[str, Any] = {"prompts": ["p"] * 3, "completions": ["a", "b", "c"], "completion_ids": [[1], [1], [1]]}


def returning(value: Any) -> Callable[..., Any]:
    def length_reward(**kwargs: Any) -> Any:
        """Says how long."""
        return value

    return length_reward


class Judge:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, completions: list[str], **kwargs: Any) -> list[float]:
        self.calls += 1
        return [float(len(text)) for text in completions]


class AsyncJudge:
    async def __call__(self, completions: list[str], **kwargs: Any) -> list[float]:
        return [float("nan")] * len(completions)


async def slow_reward(completions: list[str], **kwargs: Any) -> list[float | None]:
    await asyncio.sleep(0)
    return [1.0, None, 0.5]


@pytest.mark.parametrize(
    "value",
    [
        [1, None, 0.5],
        (1.0, None, 0.5),
        np.array([1.0, None, 0.5], dtype=object),
        [True, None, np.float32(0.5)],
        [torch.tensor(1.0), None, torch.tensor([0.5])],
    ],
)
def test_good_values_become_lists_of_floats(value: Any) -> None:
    rewards = checked(returning(value))(**CALL)
    assert rewards == [1.0, None, 0.5]
    assert [type(reward) for reward in rewards] == [float, type(None), float]


@pytest.mark.parametrize(
    "value", [torch.tensor([1.0, 0.25, -2.0], dtype=torch.bfloat16, requires_grad=True), np.array([1, 0.25, -2])]
)
def test_tensors_and_arrays_become_lists(value: Any) -> None:
    assert checked(returning(value))(**CALL) == [1.0, 0.25, -2.0]


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ([1.0, float("nan"), 0.0], "nan for row 1"),
        ([1.0, 0.0, float("inf")], "inf for row 2"),
        (torch.tensor([0.0, 1.0, float("-inf")]), "-inf for row 2"),
        ([1.0, "good", 0.0], "'good' (str) for row 1"),
        ([[1.0], 0.0, 0.0], "[1.0] (list) for row 0"),
        ([1.0, 1 + 2j, 0.0], "(1+2j) (complex) for row 1"),
        ([1.0, torch.ones(2), 0.0], "(Tensor) for row 1"),
        ([10**5000, 0.0, 0.0], "an integer beyond float32 (int) for row 0"),
        ([0.0, 1e39, 0.0], "1e+39 for row 1"),
        ([1.0, 2.0], "2 rewards for 3 completions (row 2 is"),
        ([1.0] * 4, "4 rewards for 3 completions (row 3 is"),
        ([], "0 rewards for 3 completions (row 0 is"),
        (torch.ones(3, 1), "an array of shape (3, 1)"),
        (torch.tensor(1.0), "an array of shape ()"),
        (1.0, "1.0 instead of a list"),
        (None, "None (NoneType) instead of a list"),
        ("abc", "'abc' (str) instead of a list"),
        ({0: 1.0, 1: 1.0, 2: 1.0}, "(dict) instead of a list"),
        ([Decimal(1), 0.0, 0.0], "Decimal('1') (Decimal) for row 0"),
    ],
)
def test_bad_values_are_named(value: Any, found: str) -> None:
    with pytest.raises(ValueError) as error:
        checked(returning(value))(**CALL)
    message = str(error.value)
    assert message.startswith("reward function 'length_reward' returned ")
    assert found in message
    assert "None for a completion that cannot be scored" in message
    assert "\n" not in message


def test_a_wrapper_looks_like_its_function() -> None:
    func = returning([0.0] * 3)
    wrapped = checked(func)
    assert get_callable_name(wrapped) == wrapped.__name__ == "length_reward"
    assert wrapped.__doc__ == func.__doc__
    assert not is_async_callable(wrapped)


def test_a_coroutine_function_stays_one() -> None:
    wrapped = checked(slow_reward)
    assert inspect.iscoroutinefunction(wrapped) and is_async_callable(wrapped)
    assert get_callable_name(wrapped) == "slow_reward"
    assert asyncio.run(wrapped(**CALL)) == [1.0, None, 0.5]


def test_callable_instances_and_partials_keep_their_names() -> None:
    judge = Judge()
    wrapped = checked(judge)
    assert wrapped(**CALL) == [1.0, 1.0, 1.0] and judge.calls == 1
    assert get_callable_name(wrapped) == "Judge" and not is_async_callable(wrapped)

    asynchronous = checked(AsyncJudge())
    assert is_async_callable(asynchronous) and get_callable_name(asynchronous) == "AsyncJudge"
    with pytest.raises(ValueError, match="'AsyncJudge' returned nan for row 0"):
        asyncio.run(asynchronous(**CALL))

    partial = checked(functools.partial(functools.partial(slow_reward, extra=1), other=2))
    assert is_async_callable(partial) and get_callable_name(partial) == "slow_reward"
    assert get_callable_name(checked(soft_overlong_penalty(10, 2))) == "soft_overlong_penalty"


def test_reward_models_and_names_pass_untouched() -> None:
    model = torch.nn.Linear(1, 1)
    assert checked(model) is model
    assert checked("org/reward-model") == "org/reward-model"


def test_what_cannot_be_called_is_refused() -> None:
    with pytest.raises(TypeError, match="found 3"):
        checked(3)  # type: ignore[arg-type]


def test_rows_are_counted_without_completions_too() -> None:
    with pytest.raises(ValueError, match="1 rewards for 2 completions"):
        checked(returning([0.0]))(completion_ids=[[1], [2]])
    with pytest.raises(ValueError, match="1 rewards for 2 completions"):
        checked(lambda completions: [0.0])(["a", "b"])
    with pytest.raises(ValueError, match="without completions"):
        checked(returning([0.0]))()


def test_errors_of_the_function_come_through() -> None:
    def broken(**kwargs: Any) -> list[float]:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        checked(broken)(**CALL)


@pytest.mark.parametrize("name", sorted(REWARDS))
def test_our_own_rewards_pass(name: str) -> None:
    columns = {"answer": ["1", None, "2"], "answer_format": ["hash", "boxed", "tags"], "tests": [None, ["1"], ["2"]]}
    rewards = checked(REWARDS[name])(**CALL, **columns)
    assert len(rewards) == 3
