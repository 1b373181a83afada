"""The number reader of GSM8K-style answers: exact values from text, without floats.

A strict reader (`parse_number`) wants a text that is one number and its unit; a lenient one (`last_number`) takes the
last number of any text. Both run in linear time and never raise, whatever the text.
"""

import re
from decimal import Decimal
from fractions import Fraction

from grpo_ext.rewards.spellings import CHANGING, FOLD, JOINING

Number = Decimal | Fraction

_CURRENCY = "$€£¥₹₽₩₪฿₫₦₱¢₴₺₿"
_FRACTION_COMMAND = re.compile(r"(?<![0-9])\\[dtc]?frac\{([0-9]+)\}\{([0-9]+)\}")
_LATEX = re.compile(
    r"\\(?P<same>[$%])|(?P<comma>\{,\})|(?P<degree>\^\{?\\circ\}?)|(?P<space>\\[;: ()\[\]])"
    r"|\\[!,]|\\(?:text(?:bf|it|rm)?|math(?:rm|bf)|mbox)(?=\{)|[{}]"
)
_LATEX_BECOMES = {"comma": ",", "degree": "°", "space": " "}

_RUN = re.compile(r"[0-9.,/]+")
_PLAIN = re.compile(r"(?:(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)")
_FRACTION = re.compile(r"([0-9]+)/([0-9]+)")
_SCIENTIFIC = re.compile(r"[eE][+-]?[0-9]")
_FRACTION_DIGITS = 1000  # Fraction needs ints, whose reading from text is quadratic and limited by Python itself.
_LENIENT_TRIES = 1000

_PREFIX_LENGTH, _SUFFIX_LENGTH = 12, 40
_PREFIX = re.compile(rf"[\s*_`\"'“‘(\[{_CURRENCY}]*([^\W\d_]{{1,3}})?\.?[\s*_`\"'“‘(\[{_CURRENCY}]*")
_WORD = re.compile(r"[^\W\d_]+")
_SUFFIX_TOKEN = re.compile(
    rf"[^\W\d_]+(?:\^?[23](?![0-9]))?|[\s.,;!?()\[\]*_`\"'“”‘’%°/·，。；！？、（）-]|[{_CURRENCY}]"
)
_NOT_A_UNIT = CHANGING | JOINING | frozenset("k bn mn e i n x y z π".split())
_SHORT_SCALES = frozenset("KMB")
_CHINESE_SCALE = re.compile(r"[十百万亿萬億半]|千(?![克米])")


def _unlatex(text: str) -> str:
    r"""Undo the LaTeX that only dresses a number: `\$`, `\%`, `1{,}000`, `\text{ cm}`, `^\circ`, `\frac{1}{2}`."""
    if "\\" not in text and "{" not in text:
        return text
    # The space keeps the denominator apart from a digit that follows the fraction.
    text = _FRACTION_COMMAND.sub(r"\1/\2 ", text)
    return _LATEX.sub(lambda found: found["same"] or _LATEX_BECOMES.get(found.lastgroup or "", ""), text)


def _value(digits: str) -> Number | None:
    """Read unsigned digits with an optional grouping, decimal part or denominator; `None` if they are malformed."""
    if fraction := _FRACTION.fullmatch(digits):
        if len(digits) > _FRACTION_DIGITS or not fraction[2].strip("0"):
            return None
        return Fraction(int(fraction[1]), int(fraction[2]))
    # A Decimal made from text is exact for any number of digits, unlike one that a computation has rounded.
    return Decimal(digits.replace(",", "")) if _PLAIN.fullmatch(digits) else None


def _digits_of(text: str, start: int, end: int) -> tuple[int, int]:
    """Shrink a run of digits, dots, commas and slashes to the part that may be a number: punctuation goes."""
    run = text[start:end]
    inner = run.lstrip(",/")
    bare = inner.lstrip(".")
    sentence_end = len(inner) - len(bare) > 1 or (start > 0 and run[0] == "." and text[start - 1].isalpha())
    start = end - len(bare if sentence_end else inner)
    return start, max(start, end - len(run) + len(run.rstrip(".,/")))


def _sign_start(text: str, start: int) -> int:
    """Return where the sign before the digits at `start` is (it may stand on either side of a currency sign)."""
    if start > 0 and text[start - 1] in "+-":
        return start - 1
    before = start - 1 if start > 1 and text[start - 1] == " " and text[start - 2] in _CURRENCY else start
    if before > 1 and text[before - 1] in _CURRENCY and text[before - 2] in "+-":
        return before - 2
    return start


def _is_attached(text: str, start: int) -> bool:
    """Tell whether what stands before `start` makes it part of a name or a power: `x2`, `a_2`, `2^10`."""
    if start == 0:
        return False
    before = text[start - 1]
    if before == "_":  # part of a name after a letter or digit, else the mark of emphasis
        return start > 1 and text[start - 2].isalnum()
    return before == "^" or (before.isascii() and before.isalpha())


def _read_run(text: str, start: int, end: int, split_lists: bool) -> tuple[int, int, str] | None:
    """Read the digits `text[start:end]`; return where the number starts and ends and its plain form, or `None`."""
    digits = text[start:end]
    if split_lists and _value(digits) is None:
        digits = digits.rpartition(",")[2]
        start = end - len(digits)
    if _value(digits) is None:
        return None
    if text[end : end + 1] == "^" or _SCIENTIFIC.match(text, end):
        return None
    signed = _sign_start(text, start)
    sign = text[signed] if signed < start else ""
    before = text[signed - 1] if signed > 0 else ""
    if sign and (before.isalnum() or before in tuple(")]}%+-")):
        signed, sign = start, ""  # a subtraction or a hyphen
    if _is_attached(text, signed):
        return None
    return signed, end, ("-" if sign == "-" else "") + digits.replace(",", "")


def parse_number(text: str) -> Number | None:
    r"""Read a text that is one number, exactly: the strict reader.

    Read are a sign (also the Unicode minus), thousands commas, decimals, fractions such as `1/2`, one currency sign or
    a short unit before the number, a unit, per cent sign or punctuation after it, and the LaTeX that dresses such
    numbers (`\$1{,}000`, `18\text{ cm}^2`, `\frac{1}{2}`). A per cent sign counts as a unit: `20%` is 20. Not read are
    two numbers ("7 or 8"), mixed numbers ("1 1/2"), scientific notation, powers, and words that change the value
    ("5 million", "2x").

    Args:
        text: The answer as written.

    Returns:
        A `Decimal`, or a `Fraction` when the text has a denominator; `None` when the text is not one number.
    """
    text = _unlatex(text.translate(FOLD))
    number = None
    for run in _RUN.finditer(text):
        start, end = _digits_of(text, *run.span())
        if start == end or (text[start:end] in ("2", "3") and number is not None and _is_unit_power(text, start)):
            continue
        found = _read_run(text, start, end, split_lists=False)
        if found is None or number is not None:
            return None
        number = found
    if number is None or not _is_dressing(text[: number[0]].strip(), text[number[1] :].strip()):
        return None
    return _signed_value(number[2])


def _is_unit_power(text: str, start: int) -> bool:
    """Tell whether the digit at `start` is the exponent of a unit, as in `cm2` or `cm^2`."""
    return _is_attached(text, start) and (text[start - 1] != "^" or text[start - 2].isalpha())


def _is_dressing(prefix: str, suffix: str) -> bool:
    """Tell whether the text around a number is only currency, unit and punctuation."""
    if len(prefix) > _PREFIX_LENGTH or len(suffix) > _SUFFIX_LENGTH:
        return False
    before = _PREFIX.fullmatch(prefix)
    if before is None or _SUFFIX_TOKEN.sub("", suffix) or _CHINESE_SCALE.search(suffix):
        return False
    words = _WORD.findall(suffix) + ([before[1]] if before[1] else [])
    return all(map(_is_unit, words))


def _is_unit(word: str) -> bool:
    """Tell whether a word leaves the number beside it as it is. To `re`, `²` and `½` are letters too."""
    letters = word.rstrip("²³")
    return letters.isalpha() and letters not in _SHORT_SCALES and letters.lower() not in _NOT_A_UNIT


def _signed_value(plain: str) -> Number | None:
    """Read the plain form that `_read_run` returns."""
    value = _value(plain.removeprefix("-"))
    # copy_negate, because the minus operator would round a Decimal to the context's precision.
    if value is None or not plain.startswith("-"):
        return value
    return value.copy_negate() if isinstance(value, Decimal) else -value


def last_number(text: str) -> str | None:
    """Return the last number of a text without its commas and unit, or `None`: the lenient reader.

    "The answer is 7 or 8" gives "8": the last number counts, whatever the sentence says about it. Digits that belong
    to a name or a power (`x2`, `2^10`) and malformed ones (`3.1.2`) are passed over; of a list `1,2,3` the last entry
    counts. Words that scale a number ("5 million") are not read.

    Args:
        text: Any text.

    Returns:
        The number in a form that `parse_number` reads.
    """
    text = _unlatex(text.translate(FOLD))
    size = len(text)
    tries = 0
    for run in _RUN.finditer(text[::-1]):
        start, end = _digits_of(text, size - run.end(), size - run.start())
        if start == end:  # punctuation without a digit
            continue
        found = _read_run(text, start, end, split_lists=True)
        tries += 1
        # A tail of a thousand malformed numbers holds no answer; looking on would only cost time.
        if found is not None or tries == _LENIENT_TRIES:
            return None if found is None else found[2]
    return None


def numbers_equal(a: Number | int | None, b: Number | int | None) -> bool:
    """Tell whether two numbers are exactly equal (`0.1` and `.10` are); `None` equals nothing."""
    return a is not None and b is not None and a == b
