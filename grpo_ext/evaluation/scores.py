"""From answers to figures: which are right, pass@k, maj@k, and what two models differ by."""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from grpo_ext.evaluation.estimators import (
    LEVEL,
    RESAMPLES,
    Difference,
    Interval,
    bootstrap_interval,
    holm,
    maj_at_k,
    paired_difference,
    pass_at_k,
)
from grpo_ext.evaluation.questions import GREEDY, Answer, Question
from grpo_ext.rewards import REWARDS
from grpo_ext.rewards.formats import answer_format_named
from grpo_ext.rewards.rows import gold_text
from grpo_ext.rewards.votes import VOTES

GREEDY_MEASURE = "greedy pass@1"
# A difference is beyond noise below this probability of one as large by chance
ALPHA = 0.05


@dataclass
class Reading:
    """What one reader makes of all answers.

    Attributes:
        right: whether each answer is right, by (problem, sample); None where the gold answer cannot be read.
        votes: the answer that each sample gives, as a value.
    """

    right: dict[tuple[int, int | None], float | None] = field(default_factory=dict)
    votes: dict[tuple[int, int | None], Hashable] = field(default_factory=dict)


def read_answers(
    asked: Sequence[Question], answers: Sequence[Answer], rows: Sequence[Mapping[str, Any]], reward: str
) -> Reading:
    """Read all answers with one reader.

    Args:
        asked: questions.
        answers: theirs.
        rows: problems with `prompt`, `answer`, `answer_format`, and other columns that the reward reads.
        reward: key of `REWARDS` and `VOTES`.

    Returns:
        Verdicts and votes.
    """
    texts = [answer.text for answer in answers]
    # Under these names rewards get the prompts and the completions themselves
    names = [name for name in rows[0] if name not in ("prompt", "prompts", "completions")]
    columns = {name: [rows[question.problem][name] for question in asked] for name in names}
    columns["prompts"] = [rows[question.problem]["prompt"] for question in asked]
    found = Reading()
    scores = REWARDS[reward](texts, **columns)
    for question, text, score, gold, name in zip(
        asked, texts, scores, columns["answer"], columns["answer_format"], strict=True
    ):
        place = question.problem, question.sample
        found.right[place] = score
        # A greedy answer votes with nobody
        if question.sample is not GREEDY:
            vote = VOTES[reward](text, answer_format_named(name), gold_text(gold) or "")
            # All right answers are one, however they are written
            found.votes[place] = "right" if score else vote
    return found


def measure(reading: Reading, problems: int, samples: int, ks: Sequence[int]) -> dict[str, np.ndarray]:
    """Each measure's value on each problem whose gold answer could be read.

    Args:
        reading: verdicts and votes.
        problems: N problems.
        samples: samples of each.
        ks: values of k.

    Returns:
        By name of the measure, (N',) values; "greedy pass@1" only where there are greedy answers.
    """
    values: dict[str, list[float]] = {}
    for problem in range(problems):
        greedy = reading.right.get((problem, GREEDY))
        places = [(problem, sample) for sample in range(samples)]
        if greedy is None and reading.right.get((problem, 0)) is None:
            continue
        if greedy is not None:
            values.setdefault(GREEDY_MEASURE, []).append(greedy)
        votes = Counter(reading.votes[place] for place in places)
        correct, silent = votes.pop("right", 0), votes.pop(None, 0)
        for k in ks:
            values.setdefault(f"pass@{k}", []).append(pass_at_k(samples, correct, k))
        for k in ks:
            if k > 2:  # two have no majority but agreement
                values.setdefault(f"maj@{k}", []).append(maj_at_k(correct, list(votes.values()), k, silent))
    return {name: np.array(found) for name, found in values.items()}


def default_ks(samples: int) -> list[int]:
    """Powers of two up to the number of samples, and that number.

    Args:
        samples: samples of each problem.
    """
    powers = [1 << power for power in range(samples.bit_length())]
    return sorted({k for k in [*powers, samples] if 1 <= k <= samples})


@dataclass
class Result:
    """One model's figures.

    Attributes:
        name: as the user wrote it.
        values: by reader ("strict", "lenient") and measure, the values on each problem.
        intervals: likewise, mean and interval.
        about: what else is worth knowing: problems, lengths, truncated answers.
    """

    name: str
    values: dict[str, dict[str, np.ndarray]]
    intervals: dict[str, dict[str, Interval]]
    about: dict[str, Any]


def summarise(
    name: str,
    asked: Sequence[Question],
    answers: Sequence[Answer],
    readings: Mapping[str, Reading],
    ks: Sequence[int],
    level: float = LEVEL,
    resamples: int = RESAMPLES,
) -> Result:
    """Figures of one model.

    Args:
        name: of the model.
        asked: questions.
        answers: theirs.
        readings: by reader.
        ks: values of k.
        level: confidence.
        resamples: draws of the bootstrap.

    Returns:
        The figures.

    Raises:
        ValueError: no problem has a gold answer that can be read.
    """
    problems = 1 + max(question.problem for question in asked)
    samples = 1 + max((question.sample for question in asked if question.sample is not GREEDY), default=-1)
    values = {reader: measure(reading, problems, samples, ks) for reader, reading in readings.items()}
    known = [max(map(len, measures.values()), default=0) for measures in values.values()]
    if not all(known):
        raise ValueError("no problem has a gold answer that the readers can read; look at the column 'answer'.")
    intervals = {
        reader: {measure_: bootstrap_interval(found, level, resamples) for measure_, found in measures.items()}
        for reader, measures in values.items()
    }
    about = {
        "problems": problems,
        "unreadable_gold": problems - min(known),
        "samples": samples,
        "mean_length": sum(answer.tokens for answer in answers) / len(answers),
        "truncated": sum(not answer.ended for answer in answers) / len(answers),
    }
    return Result(name, values, intervals, about)


@dataclass(frozen=True)
class Comparison:
    """Two models on one measure.

    Attributes:
        first: name of a model.
        second: name of the other.
        reader: "strict" or "lenient".
        measure: its name.
        difference: second - first.
        adjusted_p: p after Holm's correction over all pairs of models.
    """

    first: str
    second: str
    reader: str
    measure: str
    difference: Difference
    adjusted_p: float

    @property
    def beyond_noise(self) -> bool:
        """Whether chance alone rarely gives such a difference."""
        return self.adjusted_p < ALPHA


def compare(results: Sequence[Result], level: float = LEVEL, resamples: int = RESAMPLES) -> list[Comparison]:
    """Each pair of models on each measure.

    Args:
        results: of models on the same problems.
        level: confidence.
        resamples: draws of the bootstrap and of the test.

    Returns:
        The comparisons, those of one measure next to each other.
    """
    pairs = [(one, other) for place, one in enumerate(results) for other in results[place + 1 :]]
    found: list[Comparison] = []
    if not pairs:
        return found
    for name in next(iter(results[0].values.values())):
        for reader in results[0].values:
            gaps = [
                paired_difference(other.values[reader][name], one.values[reader][name], level, resamples)
                for one, other in pairs
            ]
            adjusted = holm([gap.p for gap in gaps])
            found += [
                Comparison(one.name, other.name, reader, name, gap, p)
                for (one, other), gap, p in zip(pairs, gaps, adjusted, strict=True)
            ]
    return found
