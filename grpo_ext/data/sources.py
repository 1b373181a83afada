"""Where a data set comes from: a folder of the user's, or else the Hugging Face hub."""

import json
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow

logger = logging.getLogger(__name__)

DATA_FOLDER_VARIABLE = "GRPO_EXT_DATA"


def find(
    filename: str,
    hub: str,
    hub_config: str | None = None,
    split: str = "train",
    columns: Sequence[str] = (),
) -> datasets.Dataset:
    """Load a data set from the folder that the variable GRPO_EXT_DATA names, or else from the hub.

    Args:
        filename: Plain name of a JSON Lines file inside the folder, such as "gsm8k_train.jsonl".
        hub: Name of the data set on the hub, such as "openai/gsm8k".
        hub_config: Configuration of the data set on the hub.
        split: Split of the data set on the hub.
        columns: Columns that every row must have.

    Returns:
        The rows in their order, with all their columns.

    Raises:
        FileNotFoundError: Neither place has the data set.
        ValueError: `filename` is not a plain file name, a line is not a JSON object, or a column is missing.
    """
    if filename in ("", ".", "..") or not {"/", "\\", "\0", ":"}.isdisjoint(filename):
        raise ValueError(f"{filename!r} is not the plain name of a file inside the data folder.")
    folder = os.environ.get(DATA_FOLDER_VARIABLE)
    if folder and (Path(folder) / filename).is_file():
        path = Path(folder) / filename
        logger.info("reading %s (folder of %s)", path, DATA_FOLDER_VARIABLE)
        return read_json_lines(path, columns)
    looked = f"there is no {filename} in {folder}" if folder else f"{DATA_FOLDER_VARIABLE} is not set"
    try:
        rows = datasets.load_dataset(hub, hub_config, split=split)
    except OSError as error:  # what every failure to reach or find a data set on the hub is
        raise FileNotFoundError(
            f"{looked}, and the hub did not give the data set {hub!r} ({error}); set {DATA_FOLDER_VARIABLE} to a "
            f"folder that holds {filename}, or run where the hub can be reached."
        ) from error
    missing = [column for column in columns if column not in rows.column_names]
    if missing:
        raise ValueError(f"{hub} on the hub has no column {missing[0]!r}; it has {', '.join(rows.column_names)}.")
    logger.info("using %s from the hub, split %s (%s)", hub, split, looked)
    return rows


def read_json_lines(path: Path, columns: Sequence[str] = ()) -> datasets.Dataset:
    """Read a JSON Lines file; blank lines are passed over.

    Args:
        path: The file.
        columns: Columns that every row must have.

    Returns:
        The rows in their order, with all their columns.

    Raises:
        ValueError: There are no rows, a line is not a JSON object, or a column is missing.
    """
    with path.open("rb") as lines:
        rows = list(_rows(path, lines, columns))
    if not rows:
        raise ValueError(f"{path} holds no rows; it needs one JSON object per line.")
    try:
        return datasets.Dataset.from_list(rows)
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path} mixes types within a column: {error}.") from error


def _rows(path: Path, lines: Iterable[bytes], columns: Sequence[str]) -> Iterable[dict[str, Any]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # malformed JSON or UTF-8, or nested beyond reason
            raise ValueError(f"{path}, line {number} is not valid JSON: {error}.") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number} is not a JSON object but {type(row).__name__}.")
        for column in columns:
            if column not in row:
                raise ValueError(f"{path}, line {number} has no column {column!r}; it has {', '.join(row) or 'none'}.")
        yield row
