"""Which completions give the same answer, for a vote among them: an answer as a value that can be counted."""

from collections.abc import Callable, Hashable
from typing import Any

from grpo_ext.rewards.answers import Answer, read
from grpo_ext.rewards.code import extract_program
from grpo_ext.rewards.correctness import lenient_number, strict_number
from grpo_ext.rewards.formats import AnswerFormat
from grpo_ext.rewards.maths import found_answer

# Takes the text of a completion, the asked-for format and the gold answer, which only says whether a number is wanted.
Vote = Callable[[str, AnswerFormat, str], Hashable]


# Numbers of both exact types compare and hash by value: 0.5 and 1/2 are one answer
def _strict(text: str, row_format: AnswerFormat, gold: str) -> Hashable:
    return strict_number(text, row_format)


def _lenient(text: str, row_format: AnswerFormat, gold: str) -> Hashable:
    return lenient_number(text, row_format)


def _maths(lenient: bool) -> Vote:
    def vote(text: str, row_format: AnswerFormat, gold: str) -> Hashable:
        found = found_answer(text, row_format, gold, lenient)
        return None if found is None else _value(read(found))

    return vote


def _program(text: str, row_format: AnswerFormat, gold: str) -> Hashable:
    return extract_program(text).strip() or None


def _value(answer: Answer) -> tuple[Any, ...]:
    """The structure of an answer with exact values where there are some, and otherwise its text."""
    atom = answer.atom
    leaf = None if atom is None else atom.rest if atom.value is None else (atom.value, atom.is_percent)
    return answer.kind, answer.form, leaf, tuple(map(_value, answer.parts))


# The readers of rewards that say right or wrong, by the name of the reward. None is no answer.
VOTES: dict[str, Vote] = {
    "correct_strict": _strict,
    "correct": _lenient,
    "correct_math_strict": _maths(False),
    "correct_math": _maths(True),
    "code": _program,
}
