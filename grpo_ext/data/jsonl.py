"""Problems of the user's own: a JSON Lines file with one problem in a line."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets

from grpo_ext.checks.rows import WANTED, prompt_fault
from grpo_ext.data.rows import asked, picked, written
from grpo_ext.data.sources import read_json_lines
from grpo_ext.rewards.formats import AnswerFormat, answer_format_named

# By these names of columns, the first that a file has
QUESTIONS = ("prompt", "question", "problem", "input")
ANSWERS = ("answer", "target", "golden")
# What programs are judged by, see `grpo_ext.rewards.code_reward`
TESTS = "tests"
# Columns that are made; all others of a file stay as they are
MADE = ("prompt", "answer", "question", "solution", "answer_format")


def jsonl(
    path: str | Path,
    answer_format: str = "boxed",
    system_prompt: str | None = None,
    conversational: bool = True,
    size: int | None = None,
    seed: int = 0,
) -> datasets.Dataset:
    """Load a file whose rows have a `question` or a `prompt`, and an `answer` or `tests`.

    A `question`, also named `problem` or `input`, becomes a prompt that asks for the answer format. A `prompt`, text
    or a list of messages, is used as it is. The answer may be named `target` or `golden`. A row's own `answer_format`
    comes before the argument, and its `solution` is what a supervised warm-up learns. A row with `tests` for programs
    may do without an answer; its question is then asked as it is.

    Args:
        path: The file.
        answer_format: Name of a row of `grpo_ext.rewards.ANSWER_FORMATS`.
        system_prompt: Text of a system message, or the beginning of a plain prompt; only for questions.
        conversational: Whether the prompts of questions are lists of messages, or else plain strings.
        size: Number of problems to draw at random; `None` takes all, in their order.
        seed: Seed of that draw. With one seed, a smaller draw is the beginning of a larger one.

    Returns:
        Rows with the columns `prompt`; `answer`, as text; `question`, for people; `solution`, the row's own or the
        answer in its format; `answer_format`; and all others of the file, for rewards and `group_by`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line is no JSON object, lacks a column, or names an unknown format; the size is out of range.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}; name a JSON Lines file with one problem in a line.")
    rows = read_json_lines(path)
    column, tested = _column(rows, QUESTIONS, path), TESTS in rows.column_names
    gold = _column(rows, (*ANSWERS, TESTS), path)
    others = [name for name in rows.column_names if name not in MADE and (name == TESTS or name not in (column, gold))]
    examples = []
    for row, where in picked(rows, str(path), "file", size, seed):
        answer = "" if gold == TESTS else _text(row[gold])
        if not _asks(row[column], column, where) or not (answer or (tested and row[TESTS])):
            judges = " or ".join(map(repr, dict.fromkeys([gold, TESTS] if tested else [gold])))
            raise ValueError(f"{where}: columns {column!r} and {judges} must both hold something.")
        try:
            row_format = answer_format_named(row.get("answer_format") or answer_format)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        prompt = row[column]
        if column != "prompt":
            prompt = asked(prompt.strip(), row_format if answer else None, system_prompt, conversational)
        made = _made(row, row[column], answer, row_format, where)
        examples.append({"prompt": prompt, **made, **{name: row[name] for name in others}})
    return datasets.Dataset.from_list(examples)


def _made(row: Mapping[str, Any], given: Any, answer: str, row_format: AnswerFormat, where: str) -> dict[str, str]:
    """The columns `MADE` of a row beside its prompt."""
    return {
        "answer": answer,
        "question": given if isinstance(given, str) else given[-1]["content"],
        "solution": _text(row.get("solution")) or (written(answer, row_format, where) if answer else ""),
        "answer_format": row_format.name,
    }


def has_tests(path: str | Path) -> bool:
    """Whether the first row of a file has tests of programs; what is no JSON has none, and is named when it is read.

    Args:
        path: The file.
    """
    with Path(path).open("rb") as lines:
        first = next((line for line in lines if line.strip()), b"")
    try:
        row = json.loads(first)
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict) and bool(row.get(TESTS))


def _asks(given: Any, column: str, where: str) -> bool:
    """Whether a question or prompt holds something."""
    if column != "prompt":
        return isinstance(given, str) and bool(given.strip())
    fault = prompt_fault(given)
    if fault is not None:
        raise ValueError(f"{where}: column 'prompt' {fault}; {WANTED}")
    return bool(given.strip() if isinstance(given, str) else given)


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
