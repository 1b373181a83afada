"""Calculations written in a text, such as `3 + 4 = 7` or `<<48/2=24>>`, checked in exact arithmetic.

A text is read as tokens, cut at each sign of equality, and on either side the longest expression that touches the sign
is evaluated with fractions. What cannot be read with certainty (an unknown, a word that changes a number) is not a
calculation, so it counts neither as right nor as wrong.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from grpo_ext.rewards.calculation_tokens import tokens_of
from grpo_ext.rewards.expressions import Token, evaluate

LONGEST_TEXT = 20_000
_LATEX = {
    r"\times": "*", r"\cdot": "*", r"\div": "/", r"\left": "", r"\right": "", r"\$": "$", r"\%": "%",
    r"\(": " ", r"\)": " ", r"\[": " ", r"\]": " ", r"\,": "", r"\!": "", "{,}": ",",
}  # fmt: skip
_FRACTION = re.compile(r"\\[dt]?frac\{([0-9.]+)\}\{([0-9.]+)\}")
_ANNOTATION = re.compile(r"<<([^<>\n]{1,200})>>")


@dataclass(frozen=True)
class Calculation:
    """Two expressions with a sign of equality between them.

    Attributes:
        left: tokens of the left one.
        right: tokens of the right one.
    """

    left: tuple[Token, ...]
    right: tuple[Token, ...]

    @property
    def is_right(self) -> bool:
        """Whether both sides are equal.

        A per cent sign is a hundredth (`20% * 50 = 10`); where the left side has none, it may be a mere unit on the
        right (`5 / 20 * 100 = 25%`). A single number on the right with two decimals or more may be the rounded value.
        """
        readings = (True,) if any(token.percent for token in self.left) else (True, False)
        try:
            return any(self._equal(percent) for percent in readings)
        except ZeroDivisionError:
            return False

    @property
    def is_readable(self) -> bool:
        """Whether both sides are expressions within the bounds; one that divides by zero is."""
        try:
            return evaluate(self.left) is not None and evaluate(self.right) is not None
        except ZeroDivisionError:
            return True

    def _equal(self, percent: bool) -> bool:
        value, written = evaluate(self.left, percent), evaluate(self.right, percent)
        if value is None or written is None:
            return False
        return value == written or abs(value - written) <= self._half_unit(percent)

    def _half_unit(self, percent: bool) -> Fraction:
        """Half a unit of the last place where the right side is one number with decimals."""
        token = self.right[-1]
        single = all(other.kind == "sign" for other in self.right[:-1]) and token.kind == "number"
        if not single or token.decimals < 2:
            return Fraction(0)
        return Fraction(1, 2 * 10**token.decimals) / (100 if percent and token.percent else 1)


def calculations_in(text: str) -> list[Calculation]:
    """Every calculation of a text: an expression with an operation, a sign of equality, and another expression.

    `3 + 4 = 7 = 8 - 1` are two, because a chain goes on; elsewhere a number on the left is a label (`Box 2 = 3 * 4`).
    Money signs and units are passed over (`$5 * 3 = $15`, `5 apples + 3 apples = 8 apples`), `20% of 50` is a product,
    `2x + 5 = 15` is none because of its unknown.

    Args:
        text: a step of a solution; beyond `LONGEST_TEXT` characters nothing is read.

    Returns:
        The calculations, those of GSM8K's `<<...>>` first.
    """
    text = text[:LONGEST_TEXT]
    if "=" not in text:
        return []
    if "\\" in text or "{" in text:
        text = _FRACTION.sub(r"(\1/\2)", text)
        for command, plain in _LATEX.items():
            text = text.replace(command, plain)
    found = [calculation for inner in _ANNOTATION.findall(text) for calculation in _of(inner)]
    return found + _of(_ANNOTATION.sub("", text))


def check_calculations(text: str) -> bool | None:
    """Whether all calculations of a text are right.

    Args:
        text: a step of a solution.

    Returns:
        None where there is no calculation.
    """
    found = calculations_in(text)
    return all(calculation.is_right for calculation in found) if found else None


def _of(text: str) -> list[Calculation]:
    segments = list(_segments(tokens_of(text)))
    found: list[Calculation] = []
    chained: list[Token] | None = None
    for before, after in pairwise(segments):
        left, right = _left_of(before), _right_of(after)
        goes_on = chained is not None and len(chained) == len(before)
        chained = None
        if left and right and (goes_on or any(token.kind == "operator" for token in left)):
            calculation = Calculation(tuple(left), tuple(right))
            if calculation.is_readable:
                found.append(calculation)
                chained = right
    return found


def _segments(tokens: list[Token]) -> Iterator[list[Token]]:
    """Tokens between signs of equality."""
    segment: list[Token] = []
    for token in tokens:
        if token.kind == "=":
            yield segment
            segment = []
        else:
            segment.append(token)
    yield segment


def _left_of(segment: list[Token]) -> list[Token]:
    """The longest expression that ends where the segment ends, or nothing."""
    depth, start, stop = 0, len(segment), "gap"
    while start and segment[start - 1].kind not in ("gap", "bad"):
        kind = segment[start - 1].kind
        depth += (kind == ")") - (kind == "(")
        if depth < 0:
            # A bracket that is still open: what it belongs to is not known where an operation stands before it
            stop = "bad" if start > 1 and segment[start - 2].kind == "operator" else "gap"
            break
        start -= 1
    else:
        stop = segment[start - 1].kind if start else "gap"
    found = segment[start:]
    if stop == "bad" or not found:
        return []
    first = found[0]
    if first.kind == "operator":
        # A dash with a space behind it begins an item of a list
        sign = first.text in "+-" and len(found) > 1
        if sign and not found[1].spaced:
            return [first.as_sign(), *found[1:]]
        return found[1:] if first.text in "-*+" and start == 0 else []
    return found


def _right_of(segment: list[Token]) -> list[Token]:
    """The longest expression that begins where the segment begins, or nothing."""
    depth, end = 0, 0
    while end < len(segment) and segment[end].kind not in ("gap", "bad"):
        kind = segment[end].kind
        depth += (kind == "(") - (kind == ")")
        if depth < 0:
            break
        end += 1
    if end < len(segment) and segment[end].kind == "bad":
        return []
    found = segment[:end]
    if found and found[-1].kind == "operator":
        # What follows is a word: a dash before it is punctuation, another operation wants its value
        if found[-1].text != "-":
            return []
        found = found[:-1]
    if found and found[0].kind == "operator" and found[0].text in "+-":
        return [found[0].as_sign(), *found[1:]]
    return found
