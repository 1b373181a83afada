"""One completion to make: of which problem, the how-manieth, and the random numbers that are its own."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

GREEDY = None


@dataclass(frozen=True)
class Question:
    """A completion that is asked for.

    Attributes:
        problem: row of the problem.
        key: digest of the problem, the same wherever it stands.
        sample: number of the sample, or None for the greedy answer.
        prompt: as the data set has it, text or messages.
    """

    problem: int
    key: str
    sample: int | None
    prompt: Any

    def digest(self, seed: int, step: int | str = "") -> int:
        """64 bits that depend on the seed, the problem, the sample and the step, and on nothing else."""
        text = f"{seed}|{self.key}|{self.sample}|{step}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())

    def uniform(self, seed: int, step: int) -> float:
        """A number from 0 to below 1 for the token at a place of the completion."""
        return (self.digest(seed, step) >> 11) * 2.0**-53


@dataclass(frozen=True)
class Answer:
    """A completion.

    Attributes:
        text: without special tokens.
        tokens: their number, the end token included.
        ended: whether it ended by itself, not at the limit.
    """

    text: str
    tokens: int
    ended: bool


def key_of(row: Mapping[str, Any]) -> str:
    """Digest of a problem's prompt and gold answer.

    Args:
        row: with `prompt` and `answer`.
    """
    text = json.dumps([row["prompt"], row["answer"]], ensure_ascii=False, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def questions(rows: Sequence[Mapping[str, Any]], greedy: bool, samples: int) -> list[Question]:
    """What is asked: the greedy answers of all problems, then each problem's samples side by side.

    Args:
        rows: problems with `prompt` and `answer`.
        greedy: whether to answer greedily, too.
        samples: samples of each problem.

    Returns:
        The questions.
    """
    keys = [key_of(row) for row in rows]

    def of(problem: int, sample: int | None) -> Question:
        return Question(problem, keys[problem], sample, rows[problem]["prompt"])

    first = [of(problem, GREEDY) for problem in range(len(rows))] if greedy else []
    return first + [of(problem, sample) for problem in range(len(rows)) for sample in range(samples)]


def batches(asked: Sequence[Question], size: int) -> Iterator[list[Question]]:
    """Parts of at most `size` questions, greedy and sampled apart.

    Args:
        asked: all of them, whatever is already answered: so a part is the same after a restart.
        size: questions at a time.
    """
    for kind in (True, False):
        same = [question for question in asked if (question.sample is GREEDY) == kind]
        for start in range(0, len(same), size):
            yield same[start : start + size]
