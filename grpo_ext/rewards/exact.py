r"""Exact values of numbers in LaTeX: decimals, fractions, mixed numbers, powers of ten, repeating decimals, units."""

import re
from fractions import Fraction
from typing import NamedTuple

from grpo_ext.rewards.spellings import CHANGING, JOINING

_MAX_DIGITS, _MAX_EXPONENT = 300, 400
_DECIMAL = r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
_GROUPED = re.compile(r"[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?")
_PLAIN = re.compile(_DECIMAL)
_FRACTION = re.compile(
    rf"(?P<whole>[0-9]+)?(?:\\frac\{{(?P<sign>[+-]?)(?P<over>{_DECIMAL})\}}\{{(?P<under>{_DECIMAL})\}})"
    rf"|(?:(?P<whole2>[0-9]+) )?(?P<over2>{_DECIMAL})/(?P<under2>{_DECIMAL})"
)
_SCIENTIFIC = re.compile(
    rf"(?:(?P<factor>{_DECIMAL})(?:\\times|\\cdot|\*))?10\^(?:\{{(?P<braced>[+-]?[0-9]{{1,4}})\}}|(?P<bare>[0-9]))"
    rf"|(?P<factor2>{_DECIMAL})[eE](?P<short>[+-]?[0-9]{{1,4}})"
)
_REPEATING = re.compile(r"(?P<head>[0-9]*\.[0-9]*)(?:\\overline|\\bar)\{(?P<period>[0-9]+)\}")
_TOO_FAR_SPACES = re.compile(r"(?<![0-9]) | (?![0-9])")

# Spellings of a unit -> one name. Two different known units make two different answers.
UNITS: dict[str, str] = {
    spelling: name
    for name, spellings in {
        "mm": "mm millimeter millimeters millimetre millimetres",
        "cm": "cm centimeter centimeters centimetre centimetres",
        "m": "m meter meters metre metres",
        "km": "km kilometer kilometers kilometre kilometres",
        "in": "in inch inches",
        "ft": "ft foot feet",
        "yd": "yd yard yards",
        "mi": "mi mile miles",
        "g": "g gram grams",
        "kg": "kg kilogram kilograms",
        "lb": "lb lbs pound pounds",
        "s": "s sec second seconds",
        "min": "min mins minute minutes",
        "h": "h hr hrs hour hours",
        "day": "day days",
        "year": "year years",
        "°": "° degree degrees deg",
        "rad": "rad radian radians",
        "$": "$ dollar dollars usd",
        "¢": "¢ cent cents",
        "€": "€ euro euros",
        "£": "£",
        "¥": "¥ yuan",
        "dm": "dm decimeter decimeters decimetre decimetres",
        "mg": "mg milligram milligrams",
        "ms": "ms millisecond milliseconds",
        "mL": "ml milliliter milliliters millilitre millilitres",
        "L": "l liter liters litre litres",
        "mph": "mph",
        "%": "% percent",
    }.items()
    for spelling in spellings.split()
}
# Words that are no unit because they change the value or want another one.
_NO_UNIT = CHANGING | JOINING | frozenset("times by base sin cos tan cot sec csc log exp abs".split())
_TEXT_TAIL = re.compile(r"\s*\\text\s*\{([^{}]*)\}\s*(?:\^(?:\{([23])\}|([23])))?$")
_WORD_TAIL = re.compile(r"(?<=[0-9})°%])(\s*)([A-Za-z]+(?:[ ./-]+[A-Za-z]+){0,5}[ ./-]*)(?:\^(?:\{([23])\}|([23])))?$")
_CURRENCY = re.compile(r"^([+-]?)\s*([$€£¥])\s*")


class Quantity(NamedTuple):
    """An answer without its unit: the rest, the exact value if the rest is a number, the unit if it is known."""

    rest: str
    value: Fraction | None
    unit: str | None

    @property
    def is_percent(self) -> bool:
        """Whether the number is written in per cent; `value` is then the number as written."""
        return self.unit == "%"


def _unit_name(words: str, power: str | None) -> str | None:
    """Return the one name of a unit, `""` for words that no value depends on, or `None` for what is no unit."""
    plain = [word for word in re.split(r"[^A-Za-z$°¢€£¥%]+", words.lower()) if word]
    if not _NO_UNIT.isdisjoint(plain):
        return None
    square = "2" if plain[:1] in (["square"], ["sq"]) else "3" if plain[:1] in (["cubic"], ["cu"]) else power or ""
    if plain[:1] and plain[0] in ("square", "sq", "cubic", "cu"):
        plain = plain[1:]
    if len(plain) != 1 or plain[0] not in UNITS:
        return ""
    return UNITS[plain[0]] + square


def _without_unit(text: str) -> tuple[str, str | None]:
    """Take units, per cent signs and currency signs off."""
    unit: str | None = None
    if money := _CURRENCY.match(text):
        text, unit = money[1] + text[money.end() :], money[2]
    if text.endswith(tuple("%°$€£¥¢")):
        return text[:-1].rstrip(), text[-1]
    if tail := _TEXT_TAIL.search(text):
        name = _unit_name(tail[1], tail[2] or tail[3])
        if name is not None and text[: tail.start()].strip():
            return text[: tail.start()].strip(), name or unit
    if tail := _WORD_TAIL.search(text):
        words = tail[2].strip()
        name = _unit_name(words, tail[3] or tail[4])
        # Letters that touch a number are variables, unless they are a unit that everybody knows.
        known = name and len(words) > 1
        if name is not None and (known or (tail[1] and (name or len(words) > 2))):
            return text[: tail.start()].strip(), name or unit
    return text, unit


def number(text: str) -> Fraction | None:
    """Read a number, exactly; `None` for anything else, or for more than 300 digits."""
    # "1, 200" is a list, "1,200" a number
    if len(text) > _MAX_DIGITS or ", " in text or " ," in text:
        return None
    text = _TOO_FAR_SPACES.sub("", text)
    if text.startswith(("+", "-")):
        value = _unsigned(text[1:])
        return value if value is None or text[0] == "+" else -value
    return _unsigned(text)


def _unsigned(text: str) -> Fraction | None:
    if len(text) > 2 and text[0] + text[-1] in ("{}", "()") and text[1:-1].replace(".", "").isdigit():
        text = text[1:-1]
    if _PLAIN.fullmatch(text):
        return Fraction(text.rstrip(".") if text.endswith(".") else text)
    if _GROUPED.fullmatch(text):
        return Fraction(text.replace(",", ""))
    if found := _FRACTION.fullmatch(text):
        over, under = found["over"] or found["over2"], found["under"] or found["under2"]
        whole = found["whole"] or found["whole2"]
        if Fraction(under) == 0 or (whole is not None and (found["sign"] or "." in over + under)):
            return None
        value = Fraction(over) / Fraction(under)
        return (-value if found["sign"] == "-" else value) + int(whole or 0)
    if found := _SCIENTIFIC.fullmatch(text):
        exponent = int(found["braced"] or found["bare"] or found["short"])
        if abs(exponent) > _MAX_EXPONENT:
            return None
        return Fraction(found["factor"] or found["factor2"] or 1) * Fraction(10) ** exponent
    if found := _REPEATING.fullmatch(text):
        head, period = found["head"], found["period"]
        shift = 10 ** len(head.partition(".")[2])
        return Fraction(head + "0") + Fraction(int(period), (10 ** len(period) - 1) * shift)
    return None


def quantity(text: str) -> Quantity:
    """Read a cleaned answer as a number with its unit.

    Args:
        text: What `latex.clean` returned.

    Returns:
        The answer without unit, and the exact value where what is left is a number.
    """
    rest, unit = _without_unit(text)
    return Quantity(rest, number(rest), unit)
