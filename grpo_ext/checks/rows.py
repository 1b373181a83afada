"""The columns and rows of a dataset: what training cannot do without, and prompts that are none.

Of a `datasets.Dataset` every row's prompt is looked at, column-wise, before training; of any other dataset the rows of
a generation are, when they are drawn (`check_drawn`).
"""

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset

from grpo_ext.checks.types import brief

# What TRL hands to every reward function beside the dataset's columns
GIVEN = {"prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments"}
# A column of this name would be handed over twice
TAKEN = ("prompts", "completions")
IMAGES = ("image", "images")
# Rows of a column that are looked at together, and those that are where a column's type says nothing about its rows
BATCH, UNTYPED = 10_000, 1_000
WANTED = "a prompt is text or a list of messages, each with a `role` and a `content`."


def check_dataset(dataset: Any, name: str, group_by: str | None = None, prompt: bool = True) -> None:
    """Look at the columns, the size and the prompts of a dataset.

    Args:
        dataset: what was given as dataset, or several by name; anything but a `datasets.Dataset` is left to TRL, and
            what a transform makes of its rows to `check_drawn`.
        name: what to call it in a message.
        group_by: column that the config groups by, or None.
        prompt: whether rows must have a `prompt`.

    Raises:
        ValueError: the dataset is empty, lacks a column, or has a row whose prompt is none.
    """
    if isinstance(dataset, Mapping):
        for part, rows in dataset.items():
            check_dataset(rows, f"{name}[{part!r}]", group_by, prompt)
    if not isinstance(dataset, Dataset):
        return
    if len(dataset) == 0:
        raise ValueError(f"`{name}` is empty; it must have at least one row.")
    if dataset.format["type"] == "custom":
        return
    wanted = (["prompt"] if prompt else []) + ([group_by] if group_by is not None else [])
    for column in wanted:
        if column not in dataset.column_names:
            why = f" (`group_by` is {column!r})" if column == group_by else ""
            raise ValueError(
                f"`{name}` has no column {column!r}{why}; it has: {', '.join(dataset.column_names)}. "
                f"Rename one with `dataset.rename_column(old, {column!r})`."
            )
    if prompt:
        _check_prompts(dataset, name)


def check_size(dataset: Any, name: str, prompts: int) -> None:
    """See that a dataset fills a generation, because TRL drops what does not and would train for no step at all.

    Args:
        dataset: what was given as dataset; anything but a `datasets.Dataset` has no size.
        name: what to call it in a message.
        prompts: different prompts of a generation, over all processes.

    Raises:
        ValueError: there are fewer rows.
    """
    if isinstance(dataset, Dataset) and len(dataset) < prompts:
        raise ValueError(
            f"`{name}` has {len(dataset)} rows, but a generation takes {prompts} different prompts (`generation_batch_"
            "size` / `num_generations`), so there would be no step; lower `per_device_train_batch_size` or "
            "`gradient_accumulation_steps`, or add rows."
        )


def check_drawn(rows: Sequence[Mapping[str, Any]], group_by: str | None = None) -> None:
    """Look at the rows of a generation.

    Args:
        rows: as the data loader hands them over.
        group_by: column that the config groups by, or None.

    Raises:
        ValueError: a row lacks a column, its prompt is none, or text and messages are mixed.
    """
    kinds = set()
    for number, row in enumerate(rows):
        where = f"Row {number} of this batch"
        for column in ("prompt", *([group_by] if group_by is not None else [])):
            if column not in row:
                raise ValueError(f"{where} has no column {column!r}; it has: {', '.join(row) or 'none'}.")
        fault = prompt_fault(row["prompt"])
        if fault is not None:
            raise ValueError(f"{where}: column 'prompt' {fault}; {WANTED}")
        kinds.add(isinstance(row["prompt"], str))
    if len(kinds) == 2:
        raise ValueError("Column 'prompt' mixes text and lists of messages within a batch; write all rows in one way.")


def check_no_images(columns: Iterable[str], name: str) -> None:
    """Refuse images where there is a tokenizer alone.

    Args:
        columns: of a dataset or a row.
        name: what to call it in a message.

    Raises:
        ValueError: there is a column that TRL takes for images.
    """
    for column in columns:
        if column in IMAGES:
            raise ValueError(
                f"{name} has a column {column!r}, which TRL takes for images, but the tokenizer takes text alone; "
                "give the trainer the model's processor, or leave the column out."
            )


def extreme_rows(dataset: Dataset, longest: int) -> list[int]:
    """Numbers of the first row, the shortest one and the longest ones, by the bytes of their prompts.

    Args:
        dataset: rows with a `prompt` that `check_dataset` has found good.
        longest: how many of the longest ones.

    Returns:
        The numbers in ascending order; the first rows alone where the column's type does not tell lengths.
    """
    first = range(min(len(dataset), longest))
    found: list[pa.Array] = []
    for table in dataset.select_columns(["prompt"]).with_format("arrow").iter(batch_size=BATCH):
        for part in table.column(0).chunks:
            if _doubtful(part) is None:
                return list(first)
            found.append(_bytes(part))
    order = pc.sort_indices(pa.chunked_array(found), sort_keys=[("", "descending")]).to_pylist()
    return sorted({0, order[-1], *order[:longest]})


def prompt_fault(prompt: Any) -> str | None:
    """What keeps a value from being a prompt, as the end of a sentence that begins with the column, or None.

    Args:
        prompt: of one row.
    """
    if isinstance(prompt, str):
        return _text_fault(prompt)
    if not isinstance(prompt, Sequence) or isinstance(prompt, bytes):
        return f"is {brief(prompt)}"
    if not prompt:
        return "is an empty list"
    for place, message in enumerate(prompt):
        if not isinstance(message, Mapping):
            return f"has {brief(message)} as message {place}"
        if not isinstance(message.get("role"), str):
            return f"has no role in message {place}, but {brief(message.get('role'))}"
        content = message.get("content")
        if content is None and message.get("tool_calls"):
            continue
        fault = _content_fault(content)
        if fault is not None:
            return f"has a content in message {place} that {fault}"
    return None


def _content_fault(content: Any) -> str | None:
    if isinstance(content, str):
        return _text_fault(content)
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        return f"is {brief(content)}"
    untyped = [part for part in content if not (isinstance(part, Mapping) and isinstance(part.get("type"), str))]
    return f"has a part without a `type`, {brief(untyped[0])}" if untyped else None


def _text_fault(text: str) -> str | None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"has half a character (a lone surrogate) at place {error.start}"
    return None


def check_reward_columns(reward_funcs: Sequence[Any], dataset: Any, name: str) -> None:
    """See that a dataset has the columns that the reward functions cannot do without, and none that TRL hands over.

    The first are the parameters without a default, and what `grpo_ext.rewards.rows.reads` has marked.

    Args:
        reward_funcs: functions, reward models and names of reward models; models are left to TRL.
        dataset: what was given as dataset; anything but a `datasets.Dataset` is left to TRL.
        name: what to call it in a message.

    Raises:
        ValueError: a column is missing, or has a name that is taken.
    """
    if not isinstance(dataset, Dataset) or dataset.format["type"] == "custom":
        return
    functions = [f for f in reward_funcs if not isinstance(f, torch.nn.Module | str) and callable(f)]
    for column in TAKEN:
        if functions and column in dataset.column_names:
            raise ValueError(
                f"`{name}` has a column {column!r}, the name under which TRL hands its own {column} to reward "
                f"functions; rename it with `dataset.rename_column({column!r}, new)`."
            )
    for function in functions:
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


# Whole columns


def _check_prompts(dataset: Dataset, name: str) -> None:
    # A shuffled or filtered dataset is a view of the rows that lie below, which are much faster to go through
    below = dataset.data.column("prompt").chunks
    if all((doubtful := _doubtful(part)) is not None and not pc.any(doubtful).as_py() for part in below):
        return
    rows = dataset.select_columns(["prompt"]).with_format(None)
    for number in _suspects(rows):
        fault = prompt_fault(rows[number]["prompt"])
        if fault is not None:
            raise ValueError(f"`{name}`, row {number}: column 'prompt' {fault}; {WANTED}")


def _suspects(rows: Dataset) -> Iterator[int]:
    """Numbers of the rows that a look at the column does not clear."""
    start = 0
    for table in rows.with_format("arrow").iter(batch_size=BATCH):
        for part in table.column(0).chunks:
            doubtful = _doubtful(part)
            if doubtful is None:
                yield from range(start, min(start + len(part), UNTYPED))
            else:
                yield from (start + place for place in pc.indices_nonzero(doubtful).to_pylist())
            start += len(part)


def _doubtful(column: pa.Array) -> pa.Array | None:
    """Which prompts are no text and no well-formed messages, or None where the type does not tell."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return pc.is_null(column)
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        return None
    kind = column.type.value_type
    if not pa.types.is_struct(kind) or not {"role", "content"} <= {kind.field(i).name for i in range(kind.num_fields)}:
        return None
    messages = column.flatten()
    role, content = messages.field("role"), messages.field("content")
    if not all(pa.types.is_string(part.type) or pa.types.is_large_string(part.type) for part in (role, content)):
        return None
    bad = pc.or_(pc.is_null(messages), pc.or_(pc.is_null(role), pc.is_null(content)))
    rows = pc.list_parent_indices(column).filter(bad)
    empty = pc.fill_null(pc.equal(pc.list_value_length(column), 0), True)
    return pc.or_(empty, pc.is_in(pa.array(range(len(column))), value_set=pc.cast(rows, pa.int64())))


def _bytes(column: pa.Array) -> pa.Array:
    """Bytes of each prompt, of text or of messages of text."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return pc.cast(pc.binary_length(column), pa.int64())
    sizes = pc.binary_length(column.flatten().field("content"))
    sums = (
        pa.table({"row": pc.list_parent_indices(column), "bytes": sizes}).group_by("row").aggregate([("bytes", "sum")])
    )
    order = pc.sort_indices(sums["row"])
    return pc.cast(sums["bytes_sum"].combine_chunks().take(order), pa.int64())
