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

from grpo_ext.rewards.expressions import Token, evaluate

LONGEST_TEXT = 20_000
_LATEX = {
    r"\times": "*", r"\cdot": "*", r"\div": "/", r"\left": "", r"\right": "", r"\$": "$", r"\%": "%",
    r"\(": " ", r"\)": " ", r"\[": " ", r"\]": " ", r"\,": "", r"\!": "", "{,}": ",",
}  # fmt: skip
_FRACTION = re.compile(r"\\[dt]?frac\{([0-9.]+)\}\{([0-9.]+)\}")
_ANNOTATION = re.compile(r"<<([^<>\n]{1,200})>>")
_OPERATORS = {"−": "-", "–": "-", "×": "*", "·": "*", "⋅": "*", "∗": "*", "÷": "/", "∕": "/", "⁄": "/", "**": "^"}

_TOKEN = re.compile(
    r"(?P<bad>\d+:\d+|\.{2,}|…)"
    r"|(?P<mixed>\d{1,6}[ ]\d{1,4}/\d{1,4}(?![\d./]))"
    r"|(?P<number>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
    r"|(?P<unit>(?:[-/][ ]?|per[ ])?[^\W\d_]{2,})"
    r"|(?P<letter>[^\W\d_])"
    r"|(?P<power>\*\*)"
    r"|(?P<money>[$€£¥])"
    r"|(?P<percent>%)"
    r"|(?P<equals>=+)"
    r"|(?P<bracket>[()])"
    r"|(?P<operator>[-+*/^−–×·⋅∗÷∕⁄])"
    r"|(?P<space>[ \t\u00a0]+)"
    r"|(?P<other>[\s\S])"
)
# Words beside a number that make it another number, so that an expression with one is left alone.
_CHANGING = frozenset(
    "dozen dozens hundred hundreds thousand thousands million millions billion billions half halves third thirds "
    "quarter quarters fourth fourths fifth fifths twice double triple thrice squared cubed plus minus times divided "
    "over cent cents sqrt pi mod".split()
)
_TIMES_LETTERS = frozenset("xX")
_UNIT_LETTERS = frozenset("mgLlhs")
# The rest of a mixed number in words: 1 and 1/4
_AND_A_FRACTION = re.compile(r"\s*[$(]?\d+/\d+(?P<more>\s*=)?")
_MOST_UNIT_WORDS = 3


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
    segments = list(_segments(_tokens(text)))
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


def _tokens(text: str) -> list[Token]:
    """Numbers, operators and brackets; `gap` where reading ends, `bad` where what is beside it cannot be trusted."""
    tokens: list[Token] = []
    words = 0
    space = True
    for match in _TOKEN.finditer(text):
        kind, written = match.lastgroup or "", match[0]
        last = tokens[-1].kind if tokens else "gap"
        if kind == "space":
            space = True
            continue
        after_value = last in ("number", ")") or words > 0
        following = text[match.end() : match.end() + 4].lstrip()[:1]
        starts_value = following.isdigit() or following in tuple("($.€£¥")
        if kind == "letter":
            is_times = written in _TIMES_LETTERS and after_value and starts_value
            is_unit = written in _UNIT_LETTERS and space and last in ("number", ")") and not words
            kind = "operator" if is_times else "unit" if is_unit else "bad"
            written = "*" if is_times else written
        if kind == "unit":
            word = written.lstrip("-/ ").removeprefix("per ").lower()
            if word == "of" and starts_value and last == "number" and not words and _is_part(tokens):
                tokens.append(Token("operator", "*", spaced=space))
            elif word in _CHANGING or (word == "and" and _goes_on_mixed(tokens, text, match.end())):
                tokens.append(Token("bad"))
            elif word == "of" and last == "bad":
                pass
            elif after_value and words < _MOST_UNIT_WORDS:
                words += 1
                continue
            else:
                # A word with an operation behind it stands for a number that is not known
                tokens.append(Token("bad" if following and following in "+*/^×÷·" else "gap"))
        elif kind == "percent" and last == "number" and not words:
            tokens[-1] = tokens[-1].as_percent()
        elif kind == "money":
            continue
        elif kind in ("number", "mixed"):
            if after_value:
                # Without a word between them two numbers may be one, as in 10 000
                tokens.append(Token("gap" if words else "bad"))
            tokens.append(Token.of_number(written, kind == "mixed", spaced=space))
        elif kind == "bracket":
            if written == "(" and after_value:
                attached = not space and not words
                tokens.append(Token("operator", "*", spaced=space) if attached else Token("gap"))
            tokens.append(Token(written))
        elif kind == "operator" and _OPERATORS.get(written, written) == "/" and not space and _over_a_fraction(tokens):
            tokens.append(Token("bad"))
        elif kind in ("operator", "power"):
            tokens.append(Token("operator", _OPERATORS.get(written, written), spaced=space or following == ""))
        else:
            tokens.append(Token({"equals": "=" if written == "=" else "bad", "bad": "bad"}.get(kind, "gap")))
        words, space = 0, False
    return tokens


def _is_part(tokens: list[Token]) -> bool:
    """Whether what was read last is a per cent or a fraction, of which one can take a part."""
    return tokens[-1].percent or (len(tokens) > 2 and (tokens[-2].kind, tokens[-2].text) == ("operator", "/"))


def _goes_on_mixed(tokens: list[Token], text: str, end: int) -> bool:
    """Whether "and" joins a number and a fraction; a fraction with an equality of its own may begin anew."""
    found = _AND_A_FRACTION.match(text, end)
    within = len(tokens) > 1 and tokens[-2].kind == "operator"
    return found is not None and (within or found["more"] is None)


def _over_a_fraction(tokens: list[Token]) -> bool:
    """Whether a stroke without spaces follows one with them: `2 / 1/5`, of which either reading may be meant."""
    return len(tokens) > 1 and tokens[-2].text == "/" and (tokens[-2].spaced or tokens[-1].spaced)


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
