"""pass@k and maj@k against closed forms and against all subsets; intervals against what they promise."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_ext.evaluation.estimators import (
    bootstrap_interval,
    holm,
    maj_at_k,
    paired_difference,
    pass_at_k,
)


@st.composite
def samples_and_k(draw: st.DrawFn) -> tuple[list[str | None], int]:
    """Up to nine samples: the right answer, three wrong ones, or none."""
    votes = draw(st.lists(st.sampled_from(["right", "a", "b", "c", None]), min_size=1, max_size=9))
    return votes, draw(st.integers(1, len(votes)))


def counted(votes: list[str | None]) -> tuple[int, list[int], int]:
    counts = Counter(votes)
    return counts.pop("right", 0), [counts[name] for name in "abc"], counts[None]


@given(samples_and_k())
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(drawn: tuple[list[str | None], int]) -> None:
    votes, k = drawn
    subsets = list(itertools.combinations(votes, k))
    share = sum("right" in subset for subset in subsets) / len(subsets)
    assert pass_at_k(len(votes), votes.count("right"), k) == pytest.approx(share, abs=1e-12)


@given(samples_and_k())
def test_maj_at_k_is_the_mean_vote_of_all_subsets(drawn: tuple[list[str | None], int]) -> None:
    votes, k = drawn
    won = []
    for subset in itertools.combinations(votes, k):
        counts = Counter(vote for vote in subset if vote is not None)
        most = max(counts.values(), default=0)
        tied = [vote for vote, count in counts.items() if count == most]
        won.append((1 / len(tied)) if "right" in tied else 0.0)
    correct, others, silent = counted(votes)
    assert maj_at_k(correct, others, k, silent) == pytest.approx(sum(won) / len(won), abs=1e-12)


@given(st.integers(1, 60), st.data())
def test_closed_forms(samples: int, data: st.DataObject) -> None:
    correct = data.draw(st.integers(0, samples))
    assert pass_at_k(samples, correct, 1) == pytest.approx(correct / samples, abs=1e-12)
    assert pass_at_k(samples, correct, samples) == float(correct > 0)
    # The paper's product, a stable form of the same
    k = data.draw(st.integers(1, samples))
    product = 0.0 if samples - correct < k else np.prod(1 - k / np.arange(samples - correct + 1, samples + 1))
    assert pass_at_k(samples, correct, k) == pytest.approx(1 - product, abs=1e-12)
    # One wrong answer against the right one: a hypergeometric tail, half of the middle
    won = 0.0
    for votes in range(k + 1):
        if votes <= correct and k - votes <= samples - correct:
            ways = math.comb(correct, votes) * math.comb(samples - correct, k - votes)
            won += ways * (1.0 if 2 * votes > k else 0.5 if 2 * votes == k else 0.0)
    assert maj_at_k(correct, [samples - correct], k) == pytest.approx(won / math.comb(samples, k), abs=1e-12)
    # A vote of one, and of two, is a sample's chance
    assert maj_at_k(correct, [samples - correct], 1) == pytest.approx(correct / samples, abs=1e-12)


def test_by_hand() -> None:
    assert pass_at_k(4, 1, 2) == 0.5
    # r r a a of four: a tie
    assert maj_at_k(2, [2], 4) == 0.5
    # r a b of three: three-way tie; a silent one takes no part, and three of {r, a, b, -} are one in four {r, a, b}
    assert maj_at_k(1, [1, 1], 3) == pytest.approx(1 / 3)
    assert maj_at_k(1, [1, 1], 3, silent=1) == pytest.approx((1 / 3 + 1 / 2 + 1 / 2 + 0) / 4)
    assert maj_at_k(0, [], 2, silent=3) == 0.0


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: pass_at_k(4, 2, 5), "k is 5; of 4 samples"),
        (lambda: pass_at_k(4, 2, 0), "k is 0"),
        (lambda: pass_at_k(4, 5, 1), "5 of 4 samples"),
        (lambda: maj_at_k(1, [1], 3), "k is 3; of 2 samples"),
        (lambda: maj_at_k(1, [-1], 1), "negative"),
        (lambda: bootstrap_interval([]), "no problem"),
        (lambda: paired_difference([1.0], [1.0, 0.0]), "1 and 2 values cannot be paired"),
    ],
)
def test_refusals(call: object, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        call()  # type: ignore[operator]


def test_the_interval_covers_as_often_as_it_says() -> None:
    draw = np.random.default_rng(0)
    inside = dict.fromkeys((0.95, 0.8), 0)
    for level in inside:
        for trial in range(400):
            # Shares of four samples whose problem has its own difficulty, as pass@1 has
            values = draw.binomial(4, draw.beta(1, 2, 60)) / 4
            found = bootstrap_interval(values, level, resamples=400, seed=trial)
            inside[level] += found.low <= 1 / 3 <= found.high
    # Three standard deviations, and a little for the percentile interval's own shortness at 60 problems
    assert 0.91 <= inside[0.95] / 400 <= 0.98
    assert 0.73 <= inside[0.8] / 400 <= 0.86


def test_the_interval_is_that_of_the_normal_distribution_where_there_are_many() -> None:
    values = np.random.default_rng(1).random(2000)
    found = bootstrap_interval(values)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert found.value == pytest.approx(values.mean(), abs=1e-12)
    assert found.high - found.value == pytest.approx(half, rel=0.05)
    assert found.value - found.low == pytest.approx(half, rel=0.05)


def test_no_spread_is_not_certainty() -> None:
    none, every = bootstrap_interval([0.0] * 30), bootstrap_interval([1.0] * 30)
    # (1 - p)^30 = 0.025
    assert (none.value, none.low) == (0.0, 0.0) and (1 - none.high) ** 30 == pytest.approx(0.025)
    assert (every.value, every.high) == (1.0, 1.0) and every.low**30 == pytest.approx(0.025)
    unseen = 1 - 0.025 ** (1 / 30)
    # One of four right on every problem: others may have had none, or all
    quarter = bootstrap_interval([0.25] * 30)
    assert (quarter.low, quarter.high) == pytest.approx((0.25 - unseen * 0.25, 0.25 + unseen * 0.75))
    alike = paired_difference([1.0, 0.0] * 15, [1.0, 0.0] * 15)
    assert (alike.value, alike.p) == (0.0, 1.0) and (alike.low, alike.high) == pytest.approx((-unseen, unseen))
    # Right against wrong everywhere: an unseen problem may be the other way round
    better = paired_difference([1.0] * 30, [0.0] * 30)
    assert (better.value, better.high) == (1.0, 1.0) and better.low == pytest.approx(1 - 2 * unseen)


@settings(max_examples=50)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 50))
def test_for_right_and_wrong_the_test_is_mcnemars(gained: int, lost: int, same: int) -> None:
    if not gained + lost + same:
        return
    first = [1.0] * gained + [0.0] * lost + [1.0] * same
    second = [0.0] * gained + [1.0] * lost + [1.0] * same
    total, fewer = gained + lost, min(gained, lost)
    tail = sum(math.comb(total, i) for i in range(fewer + 1)) / 2**total
    found = paired_difference(first, second, resamples=100)
    assert found.p == pytest.approx(min(1.0, 2 * tail), abs=1e-12)
    assert found.value == pytest.approx((gained - lost) / (total + same), abs=1e-12)
    # Gaps of another size are the same test
    halves = paired_difference([0.25 + one / 2 for one in first], [0.25 + one / 2 for one in second], resamples=100)
    assert halves.p == found.p


def test_thousands_of_discordant_problems() -> None:
    found = paired_difference([1.0] * 1400 + [0.0] * 1200, [0.0] * 1400 + [1.0] * 1200, resamples=100)
    # Two tails of a normal distribution beyond 199 / sqrt(2600), with the correction for continuity
    assert found.p == pytest.approx(math.erfc(199 / math.sqrt(2 * 2600)), rel=1e-2)


def test_drawn_signs_agree_with_all_signs() -> None:
    # 30 problems, of which 21 gain and 9 lose, every third of them only half: all signs by convolution
    first = [(0.5 if place % 3 == 0 else 1.0) * (place < 21) for place in range(30)]
    second = [(0.5 if place % 3 == 0 else 1.0) * (place >= 21) for place in range(30)]
    ways = Counter({0: 1})
    for gap in (2 * round(2 * abs(one - other)) for one, other in zip(first, second, strict=True)):
        ways = Counter({total + sign * gap: 0 for total in ways for sign in (-1, 1)}) + sum(
            (Counter({total + sign * gap: count for total, count in ways.items()}) for sign in (-1, 1)), Counter()
        )
    reached = abs(4 * round(sum(first) - sum(second)))
    exact = sum(count for total, count in ways.items() if abs(total) >= reached) / 2**30
    found = paired_difference(first, second, resamples=20_000)
    assert found.p == pytest.approx(exact, abs=4 * math.sqrt(exact / 20_000))
    assert found.low < 1 / 3 < found.high and found.low > 0


def test_equal_models_rarely_differ_and_pairing_counts() -> None:
    draw = np.random.default_rng(2)
    hits = 0
    for trial in range(200):
        skill = draw.random(80)
        one, other = (draw.random(80) < skill).astype(float), (draw.random(80) < skill).astype(float)
        hits += paired_difference(one, other, resamples=200, seed=trial).p < 0.05
    assert hits / 200 < 0.1
    # The same gain on every problem is far beyond noise, however much problems differ
    base = draw.random(80)
    assert paired_difference(base + 0.02 + 0.01 * draw.standard_normal(80), base).p < 0.001
    assert bootstrap_interval(base).high - bootstrap_interval(base).low > 0.1


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([0.2]) == [0.2] and holm([]) == []
