"""A guard around a user's reward function, so that a bad return value is named where it arises."""

import functools
import inspect
import math
import numbers
import types
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

RewardFunction = Callable[..., Any]

_WAY_OUT = "return one finite number per completion, and None for a completion that cannot be scored."
_LARGEST = torch.finfo(torch.float32).max  # TRL holds rewards in float32, where anything larger is infinite


class BadRewards(ValueError):
    """What a reward function returned is not one number or `None` per completion."""


def checked(
    func: RewardFunction | torch.nn.Module | str, finite: bool = True
) -> RewardFunction | torch.nn.Module | str:
    """Wrap a reward function so that what it returns is checked row by row.

    The wrapper keeps the function's name, under which TRL logs it, and is a coroutine function when the function is
    one. Functions, `functools.partial` objects and callable instances are wrapped; reward models and the names of
    reward models are returned as they are, because TRL reads their scores itself.

    Args:
        func: An entry of TRL's `reward_funcs`.
        finite: Whether NaN and infinity are refused; the trainer takes them for rows that could not be scored.

    Returns:
        A function with the same arguments that returns a list of B floats or `None`s. It raises a `BadRewards`, which
        is a `ValueError`, that names the reward function, the row and what was found when the return value is not a
        list, tuple, tensor or array with one entry per completion, or holds anything but finite numbers and `None`.

    Raises:
        TypeError: `func` is neither callable nor the name of a model.
    """
    if isinstance(func, torch.nn.Module | str):
        return func
    if not callable(func):
        raise TypeError(f"a reward function must be callable, a reward model or its name; found {func!r}.")
    inner: Any = func
    while isinstance(inner, functools.partial):
        inner = inner.func
    name = getattr(inner, "__name__", type(inner).__name__)

    if inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(inner.__call__):

        async def wrapper(*args: Any, **kwargs: Any) -> list[float | None]:
            return validated(name, await func(*args, **kwargs), _rows(name, args, kwargs), finite)

    else:

        def wrapper(*args: Any, **kwargs: Any) -> list[float | None]:  # type: ignore[misc]
            return validated(name, func(*args, **kwargs), _rows(name, args, kwargs), finite)

    # The attributes of an instance are its state, those of a function may be read by whoever is given the function.
    updated = ("__dict__",) if isinstance(inner, types.FunctionType) else ()
    functools.update_wrapper(wrapper, inner, updated=updated)
    wrapper.__name__ = name
    return wrapper


def _rows(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Return the number of completions in a call."""
    for key in ("completions", "prompts", "completion_ids"):
        if key in kwargs:
            return len(kwargs[key])
    if not args:
        raise ValueError(f"reward function {name!r} was called without completions, so its rows cannot be counted.")
    return len(args[0])


def validated(name: str, returned: Any, rows: int, finite: bool = True) -> list[float | None]:
    """Turn what a reward function returned into a list of floats and `None`s.

    Args:
        name: of the function.
        returned: what it returned.
        rows: completions that it was given, B.
        finite: whether NaN and infinity are refused.

    Returns:
        B floats or `None`s.

    Raises:
        BadRewards: it is something else.
    """
    if isinstance(returned, torch.Tensor | np.ndarray):
        if returned.ndim != 1:
            shape = tuple(returned.shape)
            raise BadRewards(f"reward function {name!r} returned an array of shape {shape}, not ({rows},); {_WAY_OUT}")
        returned = returned.tolist()
    if not isinstance(returned, Sequence) or isinstance(returned, str | bytes):
        raise BadRewards(f"reward function {name!r} returned {_brief(returned)} instead of a list; {_WAY_OUT}")
    if len(returned) != rows:
        raise BadRewards(
            f"reward function {name!r} returned {len(returned)} rewards for {rows} completions (row "
            f"{min(len(returned), rows)} is the first without a counterpart); {_WAY_OUT}"
        )
    of = f"reward function {name!r}"
    return [one_reward(of, value, f"row {row}", _WAY_OUT, finite) for row, value in enumerate(returned)]


def one_reward(of: str, value: Any, place: str, way_out: str, finite: bool = True) -> float | None:
    """Turn one reward into a float, leaving `None` as it is.

    Args:
        of: who returned it, for the message.
        value: what was returned.
        place: what it was returned for, for the message.
        way_out: what would work, the end of the message.
        finite: whether NaN and infinity are refused.

    Returns:
        A float or `None`.

    Raises:
        BadRewards: it is something else.
    """
    if value is None:
        return None
    scalar = isinstance(value, torch.Tensor | np.ndarray | np.generic) and math.prod(value.shape) == 1
    number = value.item() if scalar else value
    if isinstance(number, numbers.Real):
        try:
            reward = float(number)
        except OverflowError:
            reward = math.inf
        if abs(reward) <= _LARGEST or not finite:  # the first is false for NaN as well
            return reward
    raise BadRewards(f"{of} returned {_brief(value)} for {place}; {way_out}")


def _brief(value: Any) -> str:
    """Describe a value in a few words."""
    if isinstance(value, float):
        return repr(float(value))
    # repr() refuses an integer of more than 4300 digits, and an integer comes here only when it is too large.
    text = "an integer beyond float32" if isinstance(value, int) else repr(value)
    return f"{text if len(text) <= 60 else text[:60] + '...'} ({type(value).__name__})"
