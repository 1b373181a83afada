"""Checks of what a run is given, made before the long work begins."""

import tempfile
from pathlib import Path
from typing import Any

from datasets import Dataset


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
