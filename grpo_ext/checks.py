"""Checks of what a run is given, made before the long work begins."""

import inspect
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

# What TRL hands to every reward function beside the dataset's columns
GIVEN = {"prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments"}


def one_of(name: str, value: Any, choices: Collection[Any]) -> None:
    """Refuse a value that is no choice.

    Args:
        name: of the field.
        value: what it holds.
        choices: what it may hold.

    Raises:
        ValueError: in one sentence.
    """
    if value not in choices:
        raise ValueError(f"`{name}` is {value!r}; it must be one of: {', '.join(map(str, choices))}.")


def at_least(name: str, value: float, least: float = 1) -> None:
    """Refuse a number that is too small.

    Args:
        name: of the field.
        value: what it holds.
        least: what it must hold at least.

    Raises:
        ValueError: in one sentence.
    """
    if value < least:
        raise ValueError(f"`{name}` is {value}; it must be at least {least}.")


def check_output_dir(output_dir: str | Path) -> None:
    """Make the output folder and write to it once.

    Args:
        output_dir: folder of a run.

    Raises:
        OSError: the folder cannot be made or written to.
    """
    try:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output_dir):
            pass
    except OSError as error:
        raise OSError(
            f"`output_dir` {str(output_dir)!r} cannot be written to ({error.strerror}); name a folder that can."
        ) from error


def check_dataset(dataset: Any, name: str, group_by: str | None = None, prompt: bool = True) -> None:
    """Look at the columns and the size of a dataset.

    Args:
        dataset: what was given as dataset; anything but a `datasets.Dataset` is left to TRL.
        name: what to call it in a message.
        group_by: column that the config groups by, or None.
        prompt: whether rows must have a `prompt`.

    Raises:
        ValueError: the dataset is empty or lacks a column.
    """
    if not isinstance(dataset, Dataset):
        return
    if len(dataset) == 0:
        raise ValueError(f"`{name}` is empty; it must have at least one row.")
    wanted = (["prompt"] if prompt else []) + ([group_by] if group_by else [])
    for column in wanted:
        if column not in dataset.column_names:
            raise ValueError(
                f"`{name}` has no column {column!r}; it has: {', '.join(dataset.column_names)}. "
                f"Rename one with `dataset.rename_column(old, {column!r})`."
            )


def check_reward_columns(reward_funcs: Sequence[Any], dataset: Any, name: str) -> None:
    """See that a dataset has the columns that the reward functions cannot do without.

    These are the parameters without a default, and what `grpo_ext.rewards.rows.reads` has marked.

    Args:
        reward_funcs: functions, reward models and names of reward models; models are left to TRL.
        dataset: what was given as dataset; anything but a `datasets.Dataset` is left to TRL.
        name: what to call it in a message.

    Raises:
        ValueError: a column is missing.
    """
    if not isinstance(dataset, Dataset):
        return
    for function in reward_funcs:
        if isinstance(function, torch.nn.Module | str) or not callable(function):
            continue
        required = [
            parameter.name
            for parameter in inspect.signature(function).parameters.values()
            if parameter.default is parameter.empty
            and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        ]
        for column in [*required, *getattr(function, "columns", ())]:
            if column not in GIVEN and column not in dataset.column_names:
                raise ValueError(
                    f"Reward function {getattr(function, '__name__', function)!r} reads a column {column!r} that "
                    f"`{name}` lacks; it has: {', '.join(dataset.column_names)}."
                )
