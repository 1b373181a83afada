"""The number readers: exact values, nothing read that is not there, and no text that stops them."""

import time
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_ext.rewards.numbers import last_number, numbers_equal, parse_number

DECIMALS = st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**12), max_value=10**12, places=4)
NUMBER_LIKE = st.text(alphabet="0123456789.,/-+^_$%eE xkm²½\\{}元和半分\n²−１2")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("18", "18"),
        ("-7", "-7"),
        ("−7", "-7"),  # U+2212
        ("–7", "-7"),  # en dash
        ("+7", "7"),
        ("1,080", "1080"),
        ("109,200,000", "109200000"),
        ("100,000.50", "100000.5"),
        ("$18", "18"),
        ("-$18.50", "-18.5"),
        ("$-18", "-18"),
        ("$ 18", "18"),
        ("18€", "18"),
        ("US$18", "18"),
        ("Rs. 18", "18"),
        ("20%", "20"),
        (".5", "0.5"),
        ("0.10", "0.1"),
        ("18.", "18"),
        ("(18)", "18"),
        ("**18**", "18"),
        ("_18_", "18"),
        ("$18$", "18"),
        ("18 dollars", "18"),
        ("9 quarters", "9"),  # coins
        ("$18/hour", "18"),
        ("18 km/h", "18"),
        ("18cm^2", "18"),
        ("18 m2", "18"),
        ("18 m²", "18"),
        ("180°", "180"),
        ("2 cm", "2"),
        ("007", "7"),
        ("２３", "23"),
        ("共18个。", "18"),
        ("3千克", "3"),
        ("\n 18 \n", "18"),
        (r"\$1{,}000", "1000"),
        (r"1\,000", "1000"),
        (r"18\%", "18"),
        (r"18\text{ cm}^2", "18"),
        (r"90^\circ", "90"),
        (r"\(18\)", "18"),
        ("9" * 5000, "9" * 5000),
        ("0." + "0" * 5000 + "1", "0." + "0" * 5000 + "1"),
    ],
)
def test_one_number(text: str, value: str) -> None:
    assert parse_number(text) == Decimal(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1/2", Fraction(1, 2)),
        ("-3/4 cups", Fraction(-3, 4)),
        (r"-\frac{1}{2}", Fraction(-1, 2)),
        ("1⁄3", Fraction(1, 3)),
    ],
)
def test_fractions(text: str, value: Fraction) -> None:
    assert parse_number(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "none",
        "...",
        "7 or 8",
        "7 or eight",
        "7, 8",
        "5-7",
        "3:4",
        "3*4",
        "16-3=13",
        "1 1/2",
        r"2\frac{1}{2}",
        "1/0",
        "1/2/3",
        "1.5/2",
        "3.1.2",
        "1,23",
        "0,123",
        "12,34,567",
        "- 3",
        "--3",
        "not 5",
        "minus 5",
        "1e5",
        "1E+5",
        "2^10",
        "10^{-3}",
        "1.5 × 10^3",
        "5 million",
        "5k",
        "5M",
        "3 dozen",
        "3 dozens",
        "5 thirds",
        "5万",
        "5个半",
        "½",
        "18½",
        "2²",
        "2x",
        "2π",
        "√2",
        "x2",
        "a_2",
        "18 is what I get when I multiply nine by two",
        "the answer is 18",
        "Step 2: add",
        "1/" + "3" * 5000,
    ],
)
def test_not_one_number(text: str) -> None:
    assert parse_number(text) is None


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is 7 or 8.", "8"),
        ("She pays $1,080.50 in total, I think...", "1080.50"),
        ("18 - 3 = 15 eggs", "15"),
        ("16 - 3", "3"),
        ("it falls to -3", "-3"),
        ("route A-7", "7"),
        ("so 2^10 = 1024", "1024"),
        ("6 then 2^10", "6"),
        ("an area of 18 cm^2", "18"),
        ("x=1,2,3", "3"),
        ("18 (see 3.1.2)", "18"),
        ("in the end.5", "5"),
        (r"$x = \frac{3}{4}$", "3/4"),
        ("5 million", "5"),
        ("18" + " . , / -" * 5000, "18"),
        ("no number, x2", None),
        ("5" + " 1e5" * 1000, None),  # not looked for behind a thousand malformed ones
    ],
)
def test_last_number(text: str, number: str | None) -> None:
    assert last_number(text) == number


@given(DECIMALS, st.sampled_from(["{}", "${}", "{}%", "**{}**", "{} apples", "{}\n", r"\text{{about }} {}", "[{}]."]))
def test_what_python_writes_is_read(value: Decimal, frame: str) -> None:
    if "about" in frame:
        frame = "{} kg"
    assert parse_number(frame.format(value)) == value
    assert parse_number(frame.format(f"{value:,}")) == value
    assert parse_number(last_number(f"First 3, then 4.5 and so {value:,}.") or "") == value


@given(st.integers(), st.integers(min_value=1))
def test_fractions_are_exact(numerator: int, denominator: int) -> None:
    assert parse_number(f"{numerator}/{denominator}") == Fraction(numerator, denominator)


@given(st.one_of(st.text(), NUMBER_LIKE))
def test_any_text_is_survived_and_the_lenient_reader_agrees_with_the_strict(text: str) -> None:
    number, last = parse_number(text), last_number(text)
    assert last is None or parse_number(last) is not None
    if number is not None:
        assert last is not None and numbers_equal(parse_number(last), number)


@given(DECIMALS, DECIMALS)
def test_two_numbers_are_never_one(a: Decimal, b: Decimal) -> None:
    for between in (" or ", ", ", " and ", " ", "; ", "\n"):
        assert parse_number(f"{a}{between}{b}") is None


def test_equality_is_exact() -> None:
    assert numbers_equal(parse_number("0.1"), parse_number(".10"))
    assert numbers_equal(parse_number("1/2"), parse_number("0.5"))
    assert numbers_equal(parse_number("0.5"), parse_number("1/2"))
    assert numbers_equal(parse_number("-0"), parse_number("0"))
    assert numbers_equal(parse_number("18"), 18)
    assert not numbers_equal(parse_number("1/3"), parse_number("0.3333333333333333333333333333"))
    assert not numbers_equal(parse_number("9" * 5000), parse_number("9" * 4999 + "8"))
    assert not numbers_equal(parse_number("-" + "9" * 50), parse_number("-" + "9" * 49 + "8"))
    assert not numbers_equal(None, None)


MEGABYTES = 2_000_000


@pytest.mark.parametrize(
    "piece",
    [
        "1",
        "1 ",
        "a1 ",
        ".",
        ". ",
        "1,",
        ",234",
        "1/",
        "\\frac{1",
        "{",
        "-",
        "-1",
        " ",
        "$",
        "−",
        "2^",
        "\\",
        "_1",
        "5 a ",
    ],
)
@pytest.mark.parametrize("read", [parse_number, last_number])
def test_megabytes_take_linear_time(read: Callable[[str], object], piece: str) -> None:
    text = "1" + piece * (MEGABYTES // len(piece))
    start = time.process_time()
    read(text)
    assert time.process_time() - start < 3  # measured: at most 0.7; anything quadratic takes hours
