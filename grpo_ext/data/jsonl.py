"""Problems of the user's own: a JSON Lines file with one problem in a line."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets

from grpo_ext.checks.rows import WANTED, prompt_fault
from grpo_ext.data.rows import asked, picked, written
from grpo_ext.data.sources import read_json_lines
from grpo_ext.rewards.formats import answer_format_named

# By these names of columns, the first that a file has
QUESTIONS = ("prompt", "question", "problem", "input")
ANSWERS = ("answer", "target", "golden")


def jsonl(
    path: str | Path,
    answer_format: str = "boxed",
    system_prompt: str | None = None,
    conversational: bool = True,
    size: int | None = None,
    seed: int = 0,
) -> datasets.Dataset:
    """Load a file whose rows have a `question` or a `prompt`, and an `answer`.

    A `question`, also named `problem` or `input`, becomes a prompt that asks for the answer format. A `prompt`, text
    or a list of messages, is used as it is. The answer may be named `target` or `golden`. A row's own `answer_format`
    comes before the argument, and its `solution` is what a supervised warm-up learns.

    Args:
        path: The file.
        answer_format: Name of a row of `grpo_ext.rewards.ANSWER_FORMATS`.
        system_prompt: Text of a system message, or the beginning of a plain prompt; only for questions.
        conversational: Whether the prompts of questions are lists of messages, or else plain strings.
        size: Number of problems to draw at random; `None` takes all, in their order.
        seed: Seed of that draw. With one seed, a smaller draw is the beginning of a larger one.

    Returns:
        Rows with the columns `prompt`; `answer`, as text; `question`, for people; `solution`, the row's own or the
        answer in its format; and `answer_format`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line is no JSON object, lacks a column, or names an unknown format; the size is out of range.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}; name a JSON Lines file with one problem in a line.")
    rows = read_json_lines(path)
    column, gold = _column(rows, QUESTIONS, path), _column(rows, ANSWERS, path)
    examples = []
    for row, where in picked(rows, str(path), "file", size, seed):
        given: Any = row[column]
        text = given.strip() if isinstance(given, str) else given if column == "prompt" else None
        fault = prompt_fault(given) if column == "prompt" else None
        if fault is not None:
            raise ValueError(f"{where}: column 'prompt' {fault}; {WANTED}")
        answer = _text(row[gold])
        if not text or not answer:
            raise ValueError(f"{where}: columns {column!r} and {gold!r} must both hold something.")
        try:
            row_format = answer_format_named(row.get("answer_format") or answer_format)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        prompt = given if column == "prompt" else asked(text, row_format, system_prompt, conversational)
        examples.append(
            {
                "prompt": prompt,
                "answer": answer,
                "question": given if isinstance(given, str) else given[-1]["content"],
                "solution": _text(row.get("solution")) or written(answer, row_format, where),
                "answer_format": row_format.name,
            }
        )
    return datasets.Dataset.from_list(examples)


def _column(rows: datasets.Dataset, names: Sequence[str], path: Path) -> str:
    """The first of some names that is a column."""
    found = next((name for name in names if name in rows.column_names), None)
    if found is None:
        raise ValueError(
            f"{path} has no column {' or '.join(map(repr, names))}; it has {', '.join(rows.column_names)}."
        )
    return found


def _text(value: Any) -> str:
    """What a cell says; a whole number that was stored as 14.0 is 14."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None else str(value).strip()
