"""Arithmetic word problems written for this package: no download, no network, the same rows on every machine."""

from __future__ import annotations

import operator
import random
import zlib
from collections.abc import Callable, Iterator

from datasets import Dataset

from grpo_ext.checks import one_of
from grpo_ext.data.arithmetic_templates import ITEMS, NAMES, TEMPLATES, Numbers, Step, Template
from grpo_ext.rewards.formats import ANSWER_FORMATS, AnswerFormat

OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.floordiv,
}

# Of every five draws of numbers about one belongs to the test split.
TEST_SHARE = 5

DIFFICULTIES: dict[str, tuple[str, ...]] = {
    "one_step": ("one_step",),
    "two_step": ("two_step",),
    "mixed": ("one_step", "two_step"),
}

SPLITS: tuple[str, ...] = ("train", "test")


def split_of(numbers: Numbers) -> str:
    """The split that a problem with these numbers, in the order in which its text names them, belongs to.

    It is `"test"` when the CRC-32 of the numbers written with commas is a multiple of 5, otherwise `"train"`.
    """
    return "test" if zlib.crc32(",".join(map(str, numbers)).encode("ascii")) % TEST_SHARE == 0 else "train"


def _below(rng: random.Random, bound: int) -> int:
    # random() is the one method whose sequence Python promises to keep for a given integer seed.
    return int(rng.random() * bound)


def _without_replacement(rng: random.Random, count: int) -> Iterator[int]:
    """All of range(count) in random order, at a cost that grows with what is taken and not with `count`."""
    moved: dict[int, int] = {}
    for position in range(count):
        other = position + _below(rng, count - position)
        yield moved.get(other, other)
        moved[other] = moved.pop(position, position)


def _solve(steps: tuple[Step, ...], numbers: Numbers) -> tuple[int, str]:
    values = dict(zip("abc", numbers, strict=False))
    lines = []
    for left, symbol, right in steps:
        values["x"], first = OPERATIONS[symbol](values[left], values[right]), values[left]
        lines.append(f"{first} {symbol} {values[right]} = {values['x']}")
    return values["x"], "\n".join(lines)


class _Source:
    """The problems of one template in one split, handed out in random order and never twice."""

    def __init__(self, template: Template, split: str, seed: int) -> None:
        self.template = template
        self.numbers = [numbers for numbers in template.numbers() if split_of(numbers) == split]
        self.names = NAMES if "{name}" in template.text else ("",)
        self.others = len(NAMES) - 1 if "{other}" in template.text else 1
        self.count = len(self.numbers) * len(self.names) * self.others * len(ITEMS)
        self.order = _without_replacement(random.Random(seed), self.count)

    def draw(self) -> tuple[str, Numbers]:
        """The text of a question and its numbers."""
        rest, item = divmod(next(self.order), len(ITEMS))
        rest, person = divmod(rest, len(self.names))
        number, shift = divmod(rest, self.others)
        values = dict(zip("abc", self.numbers[number], strict=False))
        other = NAMES[(person + 1 + shift) % len(NAMES)]
        text = self.template.text.format(name=self.names[person], other=other, items=ITEMS[item], **values)
        return text, self.numbers[number]


def arithmetic(
    split: str = "train",
    size: int = 1024,
    seed: int = 0,
    difficulty: str = "mixed",
    answer_format: str = "hash",
    conversational: bool = True,
) -> Dataset:
    """Arithmetic word problems with whole answers, made on the spot from templates and a seed.

    The two splits cannot share a problem: which split a problem belongs to is decided by its numbers alone, through
    the CRC-32 of the numbers in the order of the text (`split_of`), before a name or an object is chosen. Equal texts
    have equal numbers and so lie in the same split, whatever the seeds and sizes of the two calls. Within one call
    no text occurs twice, the templates occur equally often, and a smaller `size` gives the first rows of a larger
    one. Rows depend on integers and `random.Random(seed).random()` only, hence are the same on every platform.

    Args:
        split: `"train"` or `"test"`.
        size: number of problems.
        seed: integer seed of the draw.
        difficulty: `"one_step"`, `"two_step"` or `"mixed"`.
        answer_format: the form the answer is asked for in, a row of `grpo_ext.rewards.formats.ANSWER_FORMATS`.
        conversational: whether `prompt` is a list with one user message, or the same text as a plain string.

    Returns:
        A dataset with the columns `prompt` (question and instruction), `question`, `answer` (digits), `solution`
        (one line per step, then the answer in the asked-for form), `difficulty`, `template` (the kind of operations,
        for instance `"multiply_add"`) and `answer_format`.

    Raises:
        ValueError: if an argument is not one of the above, or `size` exceeds the number of different problems.
    """
    one_of("split", split, SPLITS)
    one_of("difficulty", difficulty, DIFFICULTIES)
    one_of("answer_format", answer_format, ANSWER_FORMATS)
    sources = _sources(split, size, seed, difficulty)
    form, rng = ANSWER_FORMATS[answer_format], random.Random(seed)
    rows: list[dict[str, object]] = []
    while len(rows) < size:
        for index in _without_replacement(rng, len(sources)):
            rows.append(_row(sources[index], form, conversational))
    return Dataset.from_list(rows[:size])


def _sources(split: str, size: int, seed: int, difficulty: str) -> list[_Source]:
    """One for each template of a difficulty, which together hold at least `size` problems."""
    # Seeds of neighbouring templates and calls are kept apart by a stride larger than the number of templates.
    sources = [
        _Source(template, split, seed * 1000 + index)
        for index, template in enumerate(TEMPLATES)
        if template.difficulty in DIFFICULTIES[difficulty]
    ]
    most = min(source.count for source in sources) * len(sources)
    if not 0 < size <= most:
        raise ValueError(
            f"size is {size}, but {split} problems of difficulty {difficulty!r} come in sizes from 1 to {most}."
        )
    return sources


def _row(source: _Source, form: AnswerFormat, conversational: bool) -> dict[str, object]:
    question, numbers = source.draw()
    answer, working = _solve(source.template.steps, numbers)
    text = f"{question} {form.instruction}"
    return {
        "prompt": [{"role": "user", "content": text}] if conversational else text,
        "question": question,
        "answer": str(answer),
        "solution": f"{working}\n{form.render(str(answer))}",
        "difficulty": source.template.difficulty,
        "template": source.template.kind,
        "answer_format": form.name,
    }
