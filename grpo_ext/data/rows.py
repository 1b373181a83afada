"""What the loaders share: which rows are drawn, and how a question becomes a prompt."""

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from grpo_ext.rewards.formats import AnswerFormat


def chosen_rows(count: int, size: int | None, seed: int, split: str) -> list[int]:
    """Return the numbers of the rows to take: all in order, or `size` drawn at random.

    Raises:
        ValueError: `size` is out of range.
    """
    chosen = list(range(count))
    if size is None:
        return chosen
    if not 1 <= size <= count:
        raise ValueError(f"size is {size}; the {split} split has from 1 to {count} problems to draw.")
    random.Random(seed).shuffle(chosen)
    return chosen[:size]


def picked(
    rows: Sequence[Mapping[str, Any]], name: str, split: str, size: int | None, seed: int, text: Sequence[str] = ()
) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Yield each row to take and its name for a message, once the columns `text` are seen to hold some.

    Raises:
        ValueError: `size` is out of range, or a column of `text` holds none.
    """
    for index in chosen_rows(len(rows), size, seed, split):
        row, where = rows[index], f"{name} {split}, row {index}"
        for column in text:
            if not isinstance(row[column], str) or not row[column].strip():
                raise ValueError(f"{where}: column {column!r} must hold text, found {row[column]!r}.")
        yield row, where


def asked(
    question: str, row_format: AnswerFormat | None, system_prompt: str | None, conversational: bool
) -> str | list[dict[str, Any]]:
    """Put the question and the sentence that asks for the format, where there is one, into a prompt."""
    text = question if row_format is None else f"{question}\n\n{row_format.instruction}"
    if not conversational:
        return (text if system_prompt is None else f"{system_prompt}\n\n{text}") + "\n"
    system = [] if system_prompt is None else [{"role": "system", "content": system_prompt}]
    return [*system, {"role": "user", "content": text}]


def written(answer: str, row_format: AnswerFormat, where: str) -> str:
    """Write a gold answer in the asked-for format.

    Raises:
        ValueError: The format cannot hold it; the message names the row.
    """
    try:
        return row_format.render(answer)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
