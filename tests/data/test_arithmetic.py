"""The built-in arithmetic: splits that cannot overlap, rows that never change, answers that are right."""

import random
import re
import zlib
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_ext.data.arithmetic import (
    DIFFICULTIES,
    SPLITS,
    _without_replacement,
    arithmetic,
    split_of,
)
from grpo_ext.data.arithmetic_templates import TEMPLATES
from grpo_ext.rewards.formats import ANSWER_FORMATS

COLUMNS = {"prompt", "question", "answer", "solution", "difficulty", "template", "answer_format"}
# Written down once: a change of these is a change of everybody's data.
PINNED = [
    ("Chloe has 23 stickers and Tara has 17. How many more stickers does Chloe have than Tara?", "6"),
    ("Farid has 31 shells and gives 6 of them to Jamal. How many shells does Farid have left?", "25"),
    (
        "Mei has 30 postcards. Mei loses 2 of them and then buys 4 new ones. How many postcards does Mei have now?",
        "32",
    ),
]
PINNED_DIGEST = 3142385082
LINE = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)")


def recompute(solution: str) -> int:
    """Work the solution's lines out again, and check that each continues the one before and uses whole numbers."""
    lines = [LINE.fullmatch(line) for line in solution.splitlines()[:-1]]
    assert lines and all(lines), solution
    for left, symbol, right, result in (line.groups() for line in lines):
        first, second, written = int(left), int(right), int(result)
        exact = {"+": first + second, "-": first - second, "*": first * second, "/": first / second}[symbol]
        assert exact == written >= 0, solution
    assert all(before[4] == after[1] for before, after in pairwise(lines)), solution
    return int(lines[-1][4])


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
@pytest.mark.parametrize("answer_format", ANSWER_FORMATS)
def test_every_answer_follows_from_its_solution(difficulty: str, answer_format: str) -> None:
    rows = arithmetic("train", 160, seed=3, difficulty=difficulty, answer_format=answer_format)
    assert set(rows.column_names) == COLUMNS
    for row in rows:
        assert recompute(row["solution"]) == int(row["answer"])
        assert ANSWER_FORMATS[answer_format].extract(row["solution"]) == row["answer"]
        assert row["prompt"][0]["content"] == f"{row['question']} {ANSWER_FORMATS[answer_format].instruction}"
        assert len(row["solution"].splitlines()) == {"one_step": 2, "two_step": 3}[row["difficulty"]]
        numbers = re.findall(r"\d+", row["question"])
        used = {number for line in row["solution"].splitlines()[:-1] for number in LINE.fullmatch(line).group(1, 3)}
        assert set(numbers) <= used, row


@settings(max_examples=15, deadline=None)
@given(seeds=st.tuples(st.integers(0, 2**40), st.integers(0, 2**40)), difficulty=st.sampled_from(sorted(DIFFICULTIES)))
def test_no_problem_lies_in_both_splits(seeds: tuple[int, int], difficulty: str) -> None:
    for split, seed in zip(SPLITS, seeds, strict=True):
        for question in arithmetic(split, 32, seed=seed, difficulty=difficulty)["question"]:
            numbers = ",".join(re.findall(r"\d+", question))
            assert (zlib.crc32(numbers.encode()) % 5 == 0) == (split == "test")


def test_the_text_names_the_numbers_in_the_order_that_decides_the_split() -> None:
    for template in TEMPLATES:
        assert re.findall(r"{([abc])}", template.text) == list("abc"[: len(template.steps) + 1])
        shares = [split_of(numbers) for numbers in template.numbers()]
        assert 0.1 < shares.count("test") / len(shares) < 0.3, template.text
        assert len(set(template.numbers())) == len(shares)


def test_rows_are_the_same_on_every_machine() -> None:
    rows = arithmetic("train", 3, seed=7)
    assert [(row["question"], row["answer"]) for row in rows] == PINNED
    digest = zlib.crc32("\n".join(arithmetic("test", 256, seed=5)["question"]).encode())
    assert digest == PINNED_DIGEST


def test_a_smaller_size_is_a_prefix_and_seeds_differ() -> None:
    large = arithmetic("train", 100, seed=1)["question"]
    assert list(arithmetic("train", 37, seed=1)["question"]) == list(large)[:37]
    assert len(set(large) & set(arithmetic("train", 100, seed=2)["question"])) < 5


def test_templates_come_equally_often_and_no_question_twice() -> None:
    rows = arithmetic("test", 20 * len(TEMPLATES), seed=0)
    assert len(set(rows["question"])) == len(rows)
    for kind in {template.kind for template in TEMPLATES}:
        assert list(rows["template"]).count(kind) == 20 * sum(template.kind == kind for template in TEMPLATES)


def test_plain_prompts_hold_the_same_text() -> None:
    plain, chat = arithmetic(size=8, conversational=False), arithmetic(size=8)
    assert list(plain["prompt"]) == [prompt[0]["content"] for prompt in chat["prompt"]]


@given(count=st.integers(1, 200), seed=st.integers(0, 1000))
def test_drawing_without_replacement_is_a_permutation(count: int, seed: int) -> None:
    assert sorted(_without_replacement(random.Random(seed), count)) == list(range(count))


def test_every_order_is_drawn_equally_often() -> None:
    rng = random.Random(0)
    orders = [tuple(_without_replacement(rng, 3)) for _ in range(6000)]
    # Six orders, 1000 expected, standard deviation 29.
    assert all(880 < orders.count(order) < 1120 for order in set(orders)) and len(set(orders)) == 6


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"split": "dev"}, ["split", "'dev'", "one of: train, test"]),
        ({"difficulty": "hard"}, ["difficulty", "'hard'", "two_step"]),
        ({"answer_format": "xml"}, ["answer_format", "'xml'", "boxed"]),
        ({"size": 0}, ["size is 0", "from 1 to"]),
        ({"size": 10**9, "split": "test"}, ["size is 1000000000", "test problems", "from 1 to"]),
    ],
)
def test_a_wrong_argument_is_named(arguments: dict[str, object], words: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        arithmetic(**arguments)
    assert all(word in str(error.value) for word in words), error.value
