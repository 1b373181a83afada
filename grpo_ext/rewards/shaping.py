"""Rewards for the form of a completion rather than for its answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from grpo_ext.rewards.rows import Completion, completion_text, format_column


def format_reward(
    completions: Sequence[Completion],
    answer_format: str | Sequence[str | None] = "hash",
    **kwargs: Any,
) -> list[float]:
    r"""Score 1 where a completion ends with an answer in the asked-for format, else 0, right or wrong.

    The strict reader must find an answer, and nothing but white space may follow it: `\boxed{18}` ends a completion
    properly, `\boxed{18}, I think` does not, and neither does `$\boxed{18}$`.

    Args:
        completions: B strings, or B lists of messages.
        answer_format: Dataset column of B format names, or one name for all rows.
        kwargs: What else TRL passes; not used.

    Returns:
        B scores.

    Raises:
        ValueError: The column has the wrong length, or a format is unknown.
    """
    formats = format_column("format_reward", answer_format, len(completions))
    scores = []
    for completion, row_format in zip(completions, formats, strict=True):
        text = completion_text(completion)
        span = row_format.locate(text)
        scores.append(float(span is not None and not text[span.end :].strip()))
    return scores


@dataclass(frozen=True)
class SoftOverlongPenalty:
    """The function that `soft_overlong_penalty` returns; a class, so that it can be pickled."""

    max_completion_length: int
    cache_length: int
    __name__ = "soft_overlong_penalty"  # TRL logs the reward under it

    def __call__(self, completion_ids: Sequence[Sequence[int]], **kwargs: Any) -> list[float]:
        """Return the penalty, from -1 to 0, of each of the B completions."""
        start = self.max_completion_length - self.cache_length
        return [self._penalty(len(ids), start) for ids in completion_ids]

    def _penalty(self, length: int, start: int) -> float:
        if length <= start:
            return 0.0
        return -1.0 if length > self.max_completion_length else (start - length) / self.cache_length


def soft_overlong_penalty(max_completion_length: int, cache_length: int) -> SoftOverlongPenalty:
    """Make DAPO's soft overlong punishment (arXiv 2503.14476, eq. 13), a reward on completion length alone.

    R(y) = 0 if |y| ≤ L_max − L_cache; ((L_max − L_cache) − |y|) / L_cache up to |y| = L_max; −1 beyond.

    Args:
        max_completion_length: L_max in tokens, for TRL's trainer usually its `max_completion_length`.
        cache_length: L_cache in tokens, the length over which the penalty grows; 0 leaves a hard limit.

    Returns:
        A reward function named "soft_overlong_penalty".

    Raises:
        ValueError: A length is out of range.
    """
    if max_completion_length < 1:
        raise ValueError(f"max_completion_length is {max_completion_length}; it must be at least 1 token.")
    if not 0 <= cache_length <= max_completion_length:
        raise ValueError(
            f"cache_length is {cache_length}; it must lie between 0 and max_completion_length={max_completion_length}."
        )
    return SoftOverlongPenalty(max_completion_length, cache_length)
