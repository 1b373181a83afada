"""What a model is asked: each task with its loader, its prompt's answer format and its two readers."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from datasets import Dataset

from grpo_ext.data.arithmetic import arithmetic
from grpo_ext.data.cmath import cmath
from grpo_ext.data.gsm8k import gsm8k
from grpo_ext.data.jsonl import has_tests, jsonl
from grpo_ext.data.math import math

ENDING = ".jsonl"
BUILT_IN_SIZE = 256


@dataclass(frozen=True)
class Task:
    """A row of the table.

    Attributes:
        load: takes split, answer_format, system_prompt, conversational, size and seed.
        split: the loader's name of the held-out split.
        answer_format: what prompts ask for when the user names nothing else.
        strict: reward that reads the asked-for format alone, a key of `REWARDS` and of `VOTES`.
        lenient: reward that reads the answer wherever it stands, likewise.
    """

    load: Callable[[str, str, str | None, bool, int | None, int], Dataset]
    split: str
    answer_format: str
    strict: str
    lenient: str

    @property
    def readers(self) -> dict[str, str]:
        """Strict and lenient reward by these names."""
        return {"strict": self.strict, "lenient": self.lenient}


def built_in(
    difficulty: str,
    split: str,
    answer_format: str,
    system_prompt: str | None,
    conversational: bool,
    size: int | None,
    seed: int,
) -> Dataset:
    """The built-in problems, as a task loads them.

    Raises:
        ValueError: there is a system prompt, which they do not take, or what `arithmetic` raises.
    """
    if system_prompt is not None:
        raise ValueError(
            "`system_prompt` is not part of the built-in problems; leave it out, or choose other problems."
        )
    return arithmetic(split, size or BUILT_IN_SIZE, seed, difficulty, answer_format, conversational)


def _own(
    path: str,
    split: str,
    answer_format: str,
    system_prompt: str | None,
    conversational: bool,
    size: int | None,
    seed: int,
) -> Dataset:
    return jsonl(path, answer_format, system_prompt, conversational, size, seed)


NUMBERS = {"strict": "correct_strict", "lenient": "correct"}
MATHS = {"strict": "correct_math_strict", "lenient": "correct_math"}
PROGRAMS = {"strict": "code", "lenient": "code"}

TASKS: dict[str, Task] = {
    "gsm8k": Task(gsm8k, "test", "hash", **NUMBERS),
    "math": Task(math, "test", "boxed", **MATHS),
    "cmath": Task(cmath, "validation", "chinese", **MATHS),
    "arithmetic": Task(partial(built_in, "mixed"), "test", "hash", **NUMBERS),
    "arithmetic_one_step": Task(partial(built_in, "one_step"), "test", "hash", **NUMBERS),
    "arithmetic_two_step": Task(partial(built_in, "two_step"), "test", "hash", **NUMBERS),
}


def task_named(name: str) -> Task:
    """A row of `TASKS`, or a task made of the user's file.

    Args:
        name: name of a row, or path of a JSON Lines file that ends in ".jsonl".

    Returns:
        The task.

    Raises:
        ValueError: it is neither.
        FileNotFoundError: there is no such file.
    """
    return TASKS[name] if name in TASKS else task_of_file("task", name, TASKS)


def task_of_file(field: str, path: str, names: Collection[str]) -> Task:
    """A task made of the user's file.

    Args:
        field: the option that names it, for the messages.
        path: of a JSON Lines file that ends in ".jsonl".
        names: what the option takes beside a file.

    Returns:
        The task.

    Raises:
        ValueError: the path has another ending.
        FileNotFoundError: there is no such file.
    """
    if not path.endswith(ENDING):
        raise ValueError(
            f"`{field}` is {path!r}; it must be one of: {', '.join(names)}, or a file of yours that ends in {ENDING}."
        )
    if not Path(path).is_file():
        raise FileNotFoundError(f"`{field}` names the file {path!r}, which does not exist.")
    # Programs have no other answer than what their tests say
    return Task(partial(_own, path), "file", "boxed", **(PROGRAMS if has_tests(path) else MATHS))
