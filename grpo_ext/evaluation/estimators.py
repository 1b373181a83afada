"""pass@k, maj@k, and how far a mean over problems can be trusted."""

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import comb

import numpy as np

Values = Sequence[float] | np.ndarray

LEVEL = 0.95
RESAMPLES = 5000
# Differences whose sign patterns the paired test all looks at; those of more are drawn
EXACT_FLIPS = 14
# Which must not decide whether a pattern is as far away as the differences themselves
ROUNDING = 1e-9


@dataclass(frozen=True)
class Interval:
    """A mean over problems with its confidence interval.

    Attributes:
        value: the mean.
        low: lower end.
        high: upper end.
    """

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """The fields by name, for a JSON file."""
        return asdict(self)


@dataclass(frozen=True)
class Difference(Interval):
    """A mean difference between two models on the same problems.

    Attributes:
        p: probability of a difference this large, either way, if both models were equally good.
    """

    p: float


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Probability that at least one of k samples is correct, without bias.

    1 - C(n - c, k) / C(n, k) (Chen et al. 2021, arXiv 2107.03374, eq. 1).

    Args:
        samples: n samples of one problem.
        correct: c of them are correct.
        k: samples that are looked at, drawn without replacement.

    Returns:
        The probability.

    Raises:
        ValueError: k is not between 1 and n, or c is not between 0 and n.
    """
    _check(samples, correct, k)
    return 1 - comb(samples - correct, k) / comb(samples, k)


def maj_at_k(correct: int, others: Sequence[int], k: int, silent: int = 0) -> float:
    """Probability that the most frequent answer among k samples is correct, exactly.

    The mean over all C(n, k) subsets of n samples of [the correct answer has most votes] / (answers with as many). A
    tie is therefore broken by a fair draw among its answers. A sample without an answer has no vote; a subset without
    any vote is wrong. With W(v, t) subsets of k - v other samples in which no other answer has more than v votes and
    t have as many, it is Σ_v C(c, v) Σ_t W(v, t) / (t + 1) / C(n, k); W is counted answer by answer.

    Args:
        correct: c samples with the correct answer.
        others: samples with each of the other answers.
        k: samples that vote, drawn without replacement.
        silent: samples without an answer.

    Returns:
        The probability.

    Raises:
        ValueError: k is not between 1 and the number of samples, or a count is negative.
    """
    counts = [count for count in others if count]
    if min([correct, silent, *counts]) < 0:
        raise ValueError("a number of samples is negative; counts of answers are 0 or more.")
    samples = correct + silent + sum(counts)
    _check(samples, correct, k)
    won = 0.0
    total = comb(samples, k)
    for votes in range(1, min(correct, k) + 1):
        ways = _ways(counts, silent, votes, k - votes)
        won += sum(comb(correct, votes) * count / total / (tied + 1) for tied, count in enumerate(ways))
    return won


def _ways(others: Sequence[int], silent: int, votes: int, drawn: int) -> list[int]:
    """Subsets of `drawn` samples of other answers in which none has more than `votes`, by how many have as many."""
    most = drawn // votes
    table = [[0] * (most + 1) for _ in range(drawn + 1)]  # [samples drawn][answers tied]
    for count in range(min(silent, drawn) + 1):
        table[count][0] = comb(silent, count)
    for size in others:
        new = [[0] * (most + 1) for _ in range(drawn + 1)]
        for before, row in enumerate(table):
            for tied, ways in enumerate(row):
                if not ways:
                    continue
                for taken in range(min(size, votes, drawn - before) + 1):
                    new[before + taken][tied + (taken == votes)] += ways * comb(size, taken)
        table = new
    return table[drawn]


def _check(samples: int, correct: int, k: int) -> None:
    if not 1 <= k <= samples:
        raise ValueError(f"k is {k}; of {samples} samples it must be from 1 to {samples}.")
    if not 0 <= correct <= samples:
        raise ValueError(f"{correct} of {samples} samples cannot be correct.")


def bootstrap_interval(values: Values, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Mean over problems with the percentile interval of the bootstrap over problems (Efron 1979).

    Problems are drawn with replacement, all samples of a problem together. Where all values are equal, resampling
    sees no spread. A share p of other problems stays unseen with probability (1 - p)^N, which is (1 - level) / 2 at
    p = 1 - ((1 - level) / 2)^(1/N), the exact binomial bound; the ends are where that share would have 0, or 1.

    Args:
        values: (N,) one value for each problem, from 0 to 1.
        level: confidence.
        resamples: draws of N problems.
        seed: of the draws.

    Returns:
        The mean and its interval.

    Raises:
        ValueError: there are no problems.
    """
    found = np.asarray(values, dtype=float)
    if not len(found):
        raise ValueError("there is no problem to take a mean of.")
    return Interval(float(found.mean()), *_ends(found, 0.0, level, resamples, seed))


def paired_difference(
    first: Values, second: Values, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> Difference:
    """Mean of first - second on the same problems, its bootstrap interval, and a paired randomisation test.

    The test asks how often random signs before the N differences give a mean at least as far from 0 (Fisher's test).
    Where all that are not 0 are of one size, as with values that are 0 or 1, that is McNemar's exact test: with l of n
    to the rarer side p = min(1, 2 Σ_{i≤l} C(n, i) / 2^n). Otherwise all patterns of up to 14 differences are counted,
    and those of more are drawn: p = (1 + hits) / (1 + draws). The interval is that of `bootstrap_interval`, for values
    from -1 to 1.

    Args:
        first: (N,) values of one model.
        second: (N,) values of the other, in the same order.
        level: confidence.
        resamples: draws, of problems and of signs.
        seed: of the draws.

    Returns:
        The difference.

    Raises:
        ValueError: the two have different lengths, or there are no problems.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} values cannot be paired; both need the same problems.")
    if not len(first):
        raise ValueError("there is no problem to take a mean of.")
    gaps = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
    ends = _ends(gaps, -1.0, level, resamples, seed)
    return Difference(float(gaps.mean()), *ends, _sign_test(gaps[gaps != 0], resamples, seed))


def _ends(values: np.ndarray, least: float, level: float, resamples: int, seed: int) -> tuple[float, float]:
    """Ends of the interval of a mean of (N,) values from `least` to 1."""
    alpha = (1 - level) / 2
    if values.min() == values.max():
        unseen, value = 1 - alpha ** (1 / len(values)), float(values[0])
        return value - unseen * (value - least), value + unseen * (1 - value)
    low, high = np.quantile(_resampled(values, resamples, seed), [alpha, 1 - alpha])
    return float(low), float(high)


def _resampled(values: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """(resamples,) means of values drawn with replacement, in parts that fit into memory."""
    draw = np.random.default_rng(seed)
    part = max(1, 2_000_000 // len(values))
    sizes = [min(part, resamples - start) for start in range(0, resamples, part)]
    return np.concatenate([values[draw.integers(0, len(values), (size, len(values)))].mean(1) for size in sizes])


def _sign_test(gaps: np.ndarray, resamples: int, seed: int) -> float:
    if not len(gaps):
        return 1.0
    sizes = abs(gaps)
    if np.ptp(sizes) < ROUNDING:
        fewer = min((gaps > 0).sum(), (gaps < 0).sum())
        return min(1.0, 2 * sum(comb(len(gaps), i) for i in range(fewer + 1)) / 2 ** len(gaps))
    bar = abs(gaps.sum()) - ROUNDING
    if len(gaps) <= EXACT_FLIPS:
        signs = np.array(list(itertools.product((-1, 1), repeat=len(gaps))))
        return float((abs(signs @ gaps) >= bar).mean())
    draw = np.random.default_rng(seed)
    hits = sum(
        int((abs(draw.choice((-1.0, 1.0), (size, len(gaps))) @ gaps) >= bar).sum())
        for size in (min(1000, resamples - start) for start in range(0, resamples, 1000))
    )
    return (1 + hits) / (1 + resamples)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of several comparisons, raised so that a chance find among all of them stays rare (Holm 1979).

    Args:
        p_values: one for each comparison.

    Returns:
        The adjusted ones, in the same order.
    """
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted
