"""Calculations in a text: what is right, what is wrong, what is none, and that nothing else happens."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_ext.data.arithmetic import arithmetic
from grpo_ext.rewards.calculations import calculations_in, check_calculations

RIGHT = [
    "3 + 4 = 7", "3+4=7", "<<3+4=7>>", "48/2 = <<48/2=24>>24 clips", "$5 * 3 = $15", "20% of 50 = 10",
    "1/2 of 20 = 10",
    "20% + 30% = 50%", "10% * 200 = 20",
    "50 * 20% = 10", "5 apples + 3 apples = 8 apples", "3 + 4 = 7 = 8 - 1", "5 / 20 * 100 = 25%", "5/20 = 25%",
    "10/3 = 3.33", "100% - 20% = 80%", "6 ÷ 2 = 3", "6 × 7 = 42", "6 x 7 = 42", "6x7=42",
    "- 3 + 4 = 7", "1. 3 + 4 = 7",
    "(3+4)*2 = 14", "The 5 boxes (3 + 2 = 5) are full", "1,000 * 2 = 2,000", r"\frac{1}{2} \times 10 = 5",
    "-3 + 5 = 2", "3 - 5 = -2", "2^3 = 8", "2**3=8", "The total is 3 + 4 = 7 apples.", "total = 3 + 4 = 7",
    "$15/hour * 2 hours = $30", "5 * 3 = $15/day", "7 - 2 = 5 - so there", "3 + 4 = 7, 8 + 1 = 9",
    "1 1/2 * 4 = 6", "2(3+4) = 14", "60 minutes / 2 = 30 minutes", "0.1 + 0.2 = 0.3", "2 - 3 * 4 = -10",
    "8 - 3 - 2 = 3", "16 / 4 / 2 = 2", "2^3^2 = 512", "-2^2 = -4", "7 − 2 = 5", "3 · 4 = 12", "10 m + 5 m = 15 m",
    "3 + 4 = 7 and then 5 + 5 = 10",
]  # fmt: skip
WRONG = [
    "3 + 4 = 8", "3+4=8", "<<3+4=8>>7", "20% of 50 = 12", "3+4 = 7 + 2 = 9", "10/3 = 3", "7/2 = 3.4", "6x7=41",
    "4/0 = 1", "3 * 4 = 12 and 5 + 5 = 11", "3 + 4 = 7 = 8 - 2", "$5 * 3 = $14", "10/3 = 3.34", "3 - 5 = 2",
    "20% of 50 = 1000", "10% * 200 = 2000", "50% + 50 = 100",
    "0.1 + 0.2 = 0.31", "1,000 * 2 = 2,001", "3 + 4 = -7", "48/2 = <<48/2=24>>25 clips", "2 - 3 * 4 = -4",
]  # fmt: skip
NONE = [
    "", "no numbers", "x = 5", "a = b", "2x + 5 = 15", "y + 5 = 15", "7 = 3 + 4", "#### 7", "3 + 4 = ?", "3 + 4 =",
    "3 + 4 = seven", "2 dozen + 3 = 27", "half of 20 + 2 = 12", "1 hour = 60 minutes", "5 == 3 + 2", "10 - 3 != 7",
    "Week 3 + Week 4 = 48", "10 x 1 and 1/4 = 12.5", "28 / 1/5 = 140", "6:00 + 48 = 6:48", "8* = 40", "180 // 3 = 60",
    "100 x 100 = 10 000", "3 + 4", "= 7", "3 + (4 = 7", "9s + 13 = 130", "5 = 5",
    "1 trillion + 2 = 3", "negative 3 + 5 = 2",
]  # fmt: skip


@pytest.mark.parametrize("text", RIGHT)
def test_right(text: str) -> None:
    assert check_calculations(text) is True


@pytest.mark.parametrize("text", WRONG)
def test_wrong(text: str) -> None:
    assert check_calculations(text) is False


@pytest.mark.parametrize("text", NONE)
def test_none(text: str) -> None:
    assert check_calculations(text) is None


def test_every_calculation_counts() -> None:
    assert len(calculations_in("48/2 = <<48/2=24>>24, so 24 + 1 = 25 = 5 * 5")) == 4
    assert [found.is_right for found in calculations_in("3 + 4 = 7 = 8 - 2")] == [True, False]


numbers = st.integers(0, 10**6)
OPERATIONS = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}


@settings(max_examples=200, deadline=None)
@given(numbers, numbers, numbers, st.sampled_from("+-*"), st.sampled_from("+-*"), st.integers(-3, 3))
def test_integers_as_python_counts(a: int, b: int, c: int, first: str, second: str, off: int) -> None:
    inner = OPERATIONS[first](a, b)
    for text, value in (
        (f"({a} {first} {b}) {second} {c}", OPERATIONS[second](inner, c)),
        (f"{a}{first}{b}", inner),
        (f"{a:,} {first} {b:,}", inner),
    ):
        assert check_calculations(f"So {text} = {value + off} in all.") == (off == 0), text


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 10**4), st.integers(1, 10**3), st.integers(2, 4))
def test_rounded_quotients(a: int, b: int, places: int) -> None:
    written = f"{a / b:.{places}f}"
    assert check_calculations(f"{a} / {b} = {written}")
    assert not check_calculations(f"{a} / {b} = {float(written) + 2 * 10**-places:.{places}f}")


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="0123456789+-*/=()<>.,% x$of\\{}^\n", max_size=60))
def test_any_text_is_read(text: str) -> None:
    assert check_calculations(text) in (True, False, None)


@pytest.mark.parametrize(
    "text",
    ["9" * 10**6 + "+1=2", "(" * 10**5 + "1+1=2", "1+" * 10**5 + "1=2", "9^9^9^9^9 = 1", "2^10000000 = 1", "=" * 10**6,
     "1+1=2 " * 10**5, "a " * 10**5 + "= 2", "<<" * 10**5, "9999^64 * 9999^64 * 9999^64 = 1", "1/3+" * 2000 + "1=2"],
    ids=lambda text: text[:10],
)  # fmt: skip
def test_hostile_texts_take_no_time(text: str) -> None:
    started = time.perf_counter()
    check_calculations(text)
    assert time.perf_counter() - started < 1.0


def test_the_built_in_solutions_are_right() -> None:
    for solution in arithmetic("train", 200, difficulty="mixed")["solution"]:
        *lines, answer = solution.split("\n")
        assert all(check_calculations(line) for line in lines) and check_calculations(answer) is None
