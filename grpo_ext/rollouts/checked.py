"""A guard around a user's rollout function, so that a completion that is none is named where it arises."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

COLUMNS = ("prompt_ids", "completion_ids", "logprobs")


def checked_rollouts(func: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a `rollout_func` of TRL so that what it returns is checked row by row.

    Args:
        func: takes prompts and the trainer.

    Returns:
        A function that returns the same, and raises a `ValueError` where a column is missing or of another length than
        the others, or where a completion has no tokens, which TRL would trip over.
    """

    @functools.wraps(func)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        returned = func(*args, **kwargs)
        if not isinstance(returned, Mapping):
            raise ValueError(f"`rollout_func` returned a {type(returned).__name__}; {_WANTED}")
        rows = {name: returned[name] for name in COLUMNS if returned.get(name) is not None}
        if "completion_ids" not in rows or "prompt_ids" not in rows:
            raise ValueError(f"`rollout_func` returned no {'/'.join(sorted(set(COLUMNS[:2]) - set(rows)))}; {_WANTED}")
        for name, column in rows.items():
            if not isinstance(column, Sequence) or len(column) != len(rows["completion_ids"]):
                raise ValueError(
                    f"`rollout_func` returned {_size(column)} {name} for {_size(rows['completion_ids'])} completions; "
                    f"{_WANTED}"
                )
        for number, ids in enumerate(rows["completion_ids"]):
            if len(ids) == 0:
                raise ValueError(
                    f"`rollout_func` returned no tokens for completion {number}; give at least the token that ends a "
                    "completion."
                )
        return returned

    return wrapper


_WANTED = f"it must return a mapping with {', '.join(COLUMNS)}, each a list with one entry a completion."


def _size(column: Any) -> int:
    return len(column) if isinstance(column, Sequence) else 0
