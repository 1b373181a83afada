"""Rewards for answers in LaTeX or Chinese: mathematics with structure, where `correctness` reads numbers.

They take what the rewards of `correctness` take, the dataset columns `answer` and `answer_format`, and beside them
TRL's `prompts`, which tell whether the problem asks for per cent.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from grpo_ext.rewards.answers import read, same
from grpo_ext.rewards.formats import BOXED, CHINESE, HASH, SENTENCE, AnswerFormat
from grpo_ext.rewards.numbers import last_number
from grpo_ext.rewards.rows import Completion, answer_column, completion_text, format_column, gold_text, reads

# Problems that ask for per cent. One that only speaks of "20% of the students" may ask for a number of students.
_PERCENT = re.compile(
    r"\b(?:what|which|find|calculate|give|express|determine|how many)(?: [a-z]+){0,3} (?:%|per ?cent)"
    r"|\b(?:as|in) (?:a |an )?per ?cent|百分之几|百分之多少|百分比|百分率|百分数",
    re.IGNORECASE,
)
_PROMPT_CHARACTERS = 20_000
_MATHEMATICS = frozenset("\\^/=√π∞两半")  # and what `isnumeric` does not know of Chinese


def _answers(text: str, formats: Sequence[AnswerFormat]) -> Iterator[str]:
    """Give the answer in each of several formats that a text holds."""
    for row_format in formats:
        answer = row_format.extract(text)
        if answer is not None:
            # "The answer is $\boxed{5}$": what is in the box is the answer
            yield BOXED.extract(answer) or answer


def found_answer(text: str, row_format: AnswerFormat, gold: str, lenient: bool) -> str | None:
    """Return the written answer that `correct_math`, or without `lenient` `correct_math_strict`, compares."""
    if not lenient:
        return next(_answers(text, [row_format]), None)
    answers = _answers(text, [row_format, BOXED, HASH, SENTENCE, CHINESE])
    if not _is_number(gold):
        return next(answers, None)
    # "#### Final answer" is a heading of Markdown
    return next(filter(_may_be_number, answers), None) or last_number(text)


def _may_be_number(answer: str) -> bool:
    """Tell whether an answer holds a digit, Chinese ones and ½ included, or a sign of mathematics."""
    return any(character.isnumeric() or character in _MATHEMATICS for character in answer)


def asks_for_percent(problem: str) -> bool:
    """Tell whether a problem asks for its answer in per cent."""
    return _PERCENT.search(problem) is not None


def _asks_for_percent(prompts: Sequence[Any] | None, row: int) -> bool:
    if prompts is None:
        return False
    prompt = prompts[row]
    texts = [prompt] if isinstance(prompt, str) else [completion_text([message]) for message in prompt]
    return any(asks_for_percent(text[-_PROMPT_CHARACTERS:]) for text in texts)


def _score(
    reward: str,
    lenient: bool,
    completions: Sequence[Completion],
    answer: Sequence[Any] | None,
    answer_format: str | Sequence[str | None],
    prompts: Sequence[Any] | None,
) -> list[float | None]:
    answers = answer_column(reward, answer, len(completions))
    formats = format_column(reward, answer_format, len(completions))
    scores: list[float | None] = []
    for row, (completion, row_answer, row_format) in enumerate(zip(completions, answers, formats, strict=True)):
        gold = gold_text(row_answer)
        if gold is None or not gold.strip(" ${}\\"):
            scores.append(None)
            continue
        found = found_answer(completion_text(completion), row_format, gold, lenient)
        scores.append(float(found is not None and same(gold, found, _asks_for_percent(prompts, row))))
    return scores


def _is_number(gold: str) -> bool:
    atom = read(gold).atom
    return atom is not None and atom.value is not None


@reads("answer")
def correct_math_strict(
    completions: Sequence[Completion],
    answer: Sequence[Any] | None = None,
    answer_format: str | Sequence[str | None] = "hash",
    prompts: Sequence[Any] | None = None,
    **kwargs: Any,
) -> list[float | None]:
    r"""Score 1 where the answer stands in the asked-for format and is the gold answer in LaTeX or Chinese, else 0.

    `grpo_ext.rewards.answers` says which ways of writing are the same answer.

    Args:
        completions: B strings, or B lists of messages.
        answer: Dataset column of B gold answers: LaTeX such as `\left(3, \frac{\pi}{2}\right)`, Chinese, or numbers.
        answer_format: Dataset column of B format names, or one name for all rows.
        prompts: B prompts, which TRL passes; where one names per cent, the sign may be left away or written.
        kwargs: What else TRL passes; not used.

    Returns:
        B scores, `None` where there is no gold answer.

    Raises:
        ValueError: There is no column `answer`, a column has the wrong length, or a format is unknown.
        ImportError: math-verify is not installed.
    """
    return _score("correct_math_strict", False, completions, answer, answer_format, prompts)


@reads("answer")
def correct_math(
    completions: Sequence[Completion],
    answer: Sequence[Any] | None = None,
    answer_format: str | Sequence[str | None] = "hash",
    prompts: Sequence[Any] | None = None,
    **kwargs: Any,
) -> list[float | None]:
    r"""Score 1 where the answer is the gold answer in LaTeX or Chinese, wherever the completion puts it, else 0.

    Read are, in this order and down to the first that is there: the asked-for format, the last `\boxed{...}`, the
    last line `#### ...`, the last "answer is ..." or "answer: ...", the last 答案是 or 答：. If the gold answer is a
    number, words without a digit (`#### Final answer`) are passed over, and the last number of the text is read where
    nothing else is there. What `correct_math_strict` accepts is accepted here too.

    Args:
        completions: B strings, or B lists of messages.
        answer: Dataset column of B gold answers, as in `correct_math_strict`.
        answer_format: Dataset column of B format names, or one name for all rows.
        prompts: B prompts, which TRL passes; where one names per cent, the sign may be left away or written.
        kwargs: What else TRL passes; not used.

    Returns:
        B scores, `None` where there is no gold answer.

    Raises:
        ValueError: There is no column `answer`, a column has the wrong length, or a format is unknown.
        ImportError: math-verify is not installed.
    """
    return _score("correct_math", True, completions, answer, answer_format, prompts)
