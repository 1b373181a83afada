"""Where a data set comes from: a folder of the user's, or else the Hugging Face hub."""

import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow

logger = logging.getLogger(__name__)

SURROGATE = re.compile("[\ud800-\udfff]")
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
    # No hub, no such data set there, or one that is a script, which `datasets` never runs
    except (OSError, RuntimeError) as error:
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
        rows = dict(_rows(path, lines, columns))
    if not rows:
        raise ValueError(f"{path} holds no rows; it needs one JSON object per line.")
    try:
        # from_list takes the columns of the first row alone
        names = dict.fromkeys(name for row in rows.values() for name in row)
        return datasets.Dataset.from_dict({name: [row.get(name) for row in rows.values()] for name in names})
    except (pyarrow.ArrowException, UnicodeEncodeError, OverflowError) as error:
        raise ValueError(f"{path}{_unfit(rows) or f' mixes types within a column: {error}.'}") from error


def _unfit(rows: Mapping[int, Mapping[str, Any]]) -> str | None:
    """What keeps rows by the numbers of their lines from being a table, as the end of a sentence."""
    kinds: dict[str, type] = {}
    for number, row in rows.items():
        for column, value in row.items():
            reason = _unstorable(column) or _unstorable(value)
            if reason is not None:
                return f", line {number}: column {column!a} has {reason}, which a table cannot hold."
            for place, kind in _kinds(column, value):
                if kinds.setdefault(place, kind) is not kind:
                    return (
                        f" mixes types within a column: line {number}, column {place!r}, holds a {kind.__name__}, and "
                        f"before stands a {kinds[place].__name__}; write it in one way."
                    )
    return None


def _kinds(place: str, value: Any) -> Iterator[tuple[str, type]]:
    """Type of a value and of the values in it, by where they stand; whole numbers may stand among others."""
    if value is None:
        return
    yield place, float if type(value) is int else type(value)
    for name, part in value.items() if isinstance(value, dict) else ():
        yield from _kinds(f"{place}.{name}", part)
    for part in value if isinstance(value, list) else ():
        yield from _kinds(f"{place}[]", part)


def _unstorable(value: Any) -> str | None:
    if isinstance(value, str):
        return "half a character (a lone surrogate)" if SURROGATE.search(value) else None
    if isinstance(value, int):
        return None if -(2**63) <= value < 2**63 else "an integer beyond 64 bits"
    parts = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
    return next((reason for part in parts if (reason := _unstorable(part)) is not None), None)


def _rows(path: Path, lines: Iterable[bytes], columns: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
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
        yield number, row
