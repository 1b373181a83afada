"""Rewards for a correct final answer, from the strictest reader to the most forgiving one.

All take the keyword arguments that TRL gives to a reward function. The gold answer is the dataset column `answer`; the
asked-for format is the dataset column `answer_format`, one name of `ANSWER_FORMATS` per row ("hash" where it is
missing). A row whose gold answer is missing or unreadable scores `None`, which TRL takes as "cannot be scored".
"""

from collections.abc import Callable, Sequence
from typing import Any

from grpo_ext.rewards.formats import BOXED, AnswerFormat
from grpo_ext.rewards.numbers import Number, last_number, numbers_equal, parse_number
from grpo_ext.rewards.rows import Completion, answer_column, completion_text, format_column, gold_text, reads
from grpo_ext.rewards.shaping import format_reward
from grpo_ext.rewards.symbolic import Expressions, equivalent, read_expressions


def _score_numbers(
    reward: str,
    read: Callable[[str, AnswerFormat], Number | None],
    completions: Sequence[Completion],
    answer: Sequence[Any] | None,
    answer_format: str | Sequence[str | None],
) -> list[float | None]:
    """Compare the number that `read` finds in each completion with the row's gold number."""
    answers = answer_column(reward, answer, len(completions))
    formats = format_column(reward, answer_format, len(completions))
    scores: list[float | None] = []
    for completion, row_answer, row_format in zip(completions, answers, formats, strict=True):
        gold = parse_number(gold_text(row_answer) or "")
        if gold is None:
            scores.append(None)
        else:
            scores.append(float(numbers_equal(gold, read(completion_text(completion), row_format))))
    return scores


def strict_number(text: str, row_format: AnswerFormat) -> Number | None:
    """Read the number that `correct_strict` compares: the last one in the asked-for format."""
    return parse_number(row_format.extract(text) or "")


def lenient_number(text: str, row_format: AnswerFormat) -> Number | None:
    """Read the number that `correct` compares: in the asked-for format, else boxed, else the last one of the text."""
    for asked in (row_format, BOXED):
        number = parse_number(asked.extract(text) or "")
        if number is not None:
            return number
    return parse_number(last_number(text) or "")


@reads("answer")
def correct_strict(
    completions: Sequence[Completion],
    answer: Sequence[Any] | None = None,
    answer_format: str | Sequence[str | None] = "hash",
    **kwargs: Any,
) -> list[float | None]:
    """Score 1 where the answer stands in the asked-for format and is exactly the gold number, else 0.

    Only the last well-formed occurrence of the format is read, and it must be one number with its unit: "7 or 8" is
    correct for neither. The format may be followed by other text; `format_reward` asks for its place.

    Args:
        completions: B strings, or B lists of messages.
        answer: Dataset column of B gold answers: numbers, their text, or GSM8K's worked text that ends in `#### 18`.
        answer_format: Dataset column of B format names, or one name for all rows.
        kwargs: What else TRL passes; not used.

    Returns:
        B scores, `None` where the gold answer is missing or not a number.

    Raises:
        ValueError: There is no column `answer`, a column has the wrong length, or a format is unknown.
    """
    return _score_numbers("correct_strict", strict_number, completions, answer, answer_format)


@reads("answer")
def correct_final(
    completions: Sequence[Completion],
    answer: Sequence[Any] | None = None,
    answer_format: str | Sequence[str | None] = "hash",
    **kwargs: Any,
) -> list[float | None]:
    """Score 1 where `correct_strict` does and nothing follows the answer, else 0.

    A policy whose training signal is `correct_strict` alone may learn to ramble after the answer.

    Args:
        completions: B strings, or B lists of messages.
        answer: Dataset column of B gold answers.
        answer_format: Dataset column of B format names, or one name for all rows.
        kwargs: What else TRL passes; not used.

    Returns:
        B scores, `None` where the gold answer is missing or not a number.

    Raises:
        ValueError: There is no column `answer`, a column has the wrong length, or a format is unknown.
    """
    right = correct_strict(completions, answer, answer_format)
    placed = format_reward(completions, answer_format)
    return [None if score is None else score * end for score, end in zip(right, placed, strict=True)]


@reads("answer")
def correct(
    completions: Sequence[Completion],
    answer: Sequence[Any] | None = None,
    answer_format: str | Sequence[str | None] = "hash",
    **kwargs: Any,
) -> list[float | None]:
    r"""Score 1 where the answer is the gold number, wherever the completion puts it, else 0.

    Read are, in this order and down to the first that holds a number: the asked-for format, the last `\boxed{...}`,
    the last number of the text. A completion that ends "7 or 8" therefore answers 8. What `correct_strict` accepts is
    accepted here too.

    Args:
        completions: B strings, or B lists of messages.
        answer: Dataset column of B gold answers, as in `correct_strict`.
        answer_format: Dataset column of B format names, or one name for all rows.
        kwargs: What else TRL passes; not used.

    Returns:
        B scores, `None` where the gold answer is missing or not a number.

    Raises:
        ValueError: There is no column `answer`, a column has the wrong length, or a format is unknown.
    """
    return _score_numbers("correct", lenient_number, completions, answer, answer_format)


@reads("answer")
def math_verify(
    completions: Sequence[Completion],
    answer: Sequence[Any] | None = None,
    answer_format: str | Sequence[str | None] = "hash",
    **kwargs: Any,
) -> list[float | None]:
    r"""Score 1 where the answer equals the gold LaTeX expression by the math-verify library, else 0.

    The answer is read from the asked-for format, or else from the last `\boxed{...}`; other text is not searched.
    Plain numbers are compared exactly first. `grpo_ext.rewards.symbolic` says which expressions are handed to the
    library and which are refused because they could run for long; a refused answer scores 0.

    Args:
        completions: B strings, or B lists of messages.
        answer: Dataset column of B gold answers: LaTeX without delimiters such as `\frac{\sqrt{3}}{4}`, or numbers.
        answer_format: Dataset column of B format names, or one name for all rows.
        kwargs: What else TRL passes; not used.

    Returns:
        B scores, `None` where the gold answer is missing or the library cannot read it.

    Raises:
        ValueError: There is no column `answer`, a column has the wrong length, or a format is unknown.
        ImportError: math-verify is not installed.
    """
    answers = answer_column("math_verify", answer, len(completions))
    formats = format_column("math_verify", answer_format, len(completions))
    golds: dict[str, Expressions | None] = {}  # the completions of one group share their gold answer
    scores: list[float | None] = []
    for completion, row_answer, row_format in zip(completions, answers, formats, strict=True):
        gold = gold_text(row_answer)
        if gold is not None and gold not in golds:
            golds[gold] = read_expressions(gold)
        text = completion_text(completion)
        found = row_format.extract(text) or BOXED.extract(text)
        if gold is None or (expressions := golds[gold]) is None:
            scores.append(None)
        elif found is None:
            scores.append(0.0)
        else:
            same = numbers_equal(parse_number(gold), parse_number(found)) or equivalent(expressions, found)
            scores.append(float(same))
    return scores
