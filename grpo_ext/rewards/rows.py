"""What a reward function reads off one row: the text of a completion, the gold answer, the asked-for format."""

import math
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, TypeVar

from grpo_ext.rewards.formats import HASH, AnswerFormat, answer_format_named

Completion = str | Sequence[Mapping[str, Any]]
Reward = TypeVar("Reward", bound=Callable[..., Any])


def reads(*columns: str) -> Callable[[Reward], Reward]:
    """Mark a reward function with the dataset columns it cannot do without, for a check before training.

    Args:
        columns: names of columns.

    Returns:
        A decorator that returns the function itself.
    """

    def marked(reward: Reward) -> Reward:
        reward.columns = columns  # type: ignore[attr-defined]
        return reward

    return marked


def completion_text(completion: Completion) -> str:
    """Return the text of a completion: the string itself, or the content of its last message.

    The last message counts because a completion with tool calls ends with the answer. Content that comes as a list of
    parts is joined from its text parts; no message or no content gives the empty string.
    """
    if isinstance(completion, str):
        return completion
    content = completion[-1].get("content") if completion else None
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part.get("text") or "" for part in content if part.get("type") == "text")


def prompt_text(prompt: Completion, tokenizer: Any) -> str:
    """Return the text of a prompt: the string itself, or its messages in the tokenizer's chat template."""
    if isinstance(prompt, str):
        return prompt
    return tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)


def gold_text(answer: str | int | float | None) -> str | None:
    """Return the gold answer of a row as text, or `None` where there is none (missing, empty, NaN).

    A worked answer in GSM8K's own style is read down to what follows its last `####`, so the column `answer` of the
    stock data set works as it is.
    """
    match answer:
        case str():
            return (HASH.extract(answer) or answer).strip() or None
        case bool():
            return None
        case int():
            return format(Decimal(answer), "f")  # str() would refuse more than 4300 digits
        case float() if math.isfinite(answer):
            return format(Decimal(repr(answer)), "f")
    return None


def answer_column(reward: str, answer: Sequence[Any] | None, rows: int) -> Sequence[Any]:
    """Check the dataset column `answer` that `reward` was given against the number of completions.

    Raises:
        ValueError: There is no such column, or it has another length.
    """
    if answer is None:
        raise ValueError(f"reward {reward!r} needs a dataset column 'answer' with the gold answers; there is none.")
    if isinstance(answer, str) or len(answer) != rows:
        found = "one string" if isinstance(answer, str) else f"{len(answer)} entries"
        raise ValueError(
            f"column 'answer' given to reward {reward!r} is {found}, expected one entry for each of {rows}."
        )
    return answer


def format_column(reward: str, answer_format: str | Sequence[str | None], rows: int) -> list[AnswerFormat]:
    """Return the asked-for format of each row from the dataset column `answer_format` or from one name for all rows.

    Raises:
        ValueError: The column has another length than the completions, or names an unknown format.
    """
    names = [answer_format] * rows if isinstance(answer_format, str) else list(answer_format)
    if len(names) != rows:
        raise ValueError(
            f"column 'answer_format' given to reward {reward!r} has {len(names)} entries, expected {rows}, one a row."
        )
    return [HASH if name is None else answer_format_named(name) for name in names]
