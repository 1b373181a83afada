"""The tokens of calculations in a text: numbers, operators and brackets, and where reading has to end."""

import re

from grpo_ext.rewards.expressions import Token
from grpo_ext.rewards.spellings import CHANGING

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
# An expression with one of these words is left alone.
_CHANGING = CHANGING | frozenset("quarters third fourth fifth twice double triple thrice times cent cents".split())
_TIMES_LETTERS = frozenset("xX")
_UNIT_LETTERS = frozenset("mgLlhs")
# The rest of a mixed number in words: 1 and 1/4
_AND_A_FRACTION = re.compile(r"\s*[$(]?\d+/\d+(?P<more>\s*=)?")
_MOST_UNIT_WORDS = 3


def tokens_of(text: str) -> list[Token]:
    """Read a text from left to right.

    Args:
        text: plain text.

    Returns:
        Numbers, operators, brackets and "=", with `gap` where reading ends and `bad` where what is beside it cannot be
        trusted. Money signs and units leave no token.
    """
    return _Reader(text).read()


class _Reader:
    """One reading.

    Attributes:
        tokens: what was read.
        words: of a unit since the last token.
        space: whether there is a space before what is read next.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens: list[Token] = []
        self.words = 0
        self.space = True

    def read(self) -> list[Token]:
        for match in _TOKEN.finditer(self.text):
            kind, written = match.lastgroup or "", match[0]
            if kind == "letter":
                kind, written = self._letter(written, match.end())
            if kind == "space":
                self.space = True
            elif kind == "unit" and self._is_mere_unit(written, match.end()):
                self.words += 1
            elif kind != "money":
                if kind != "unit":
                    self._take(kind, written, match.end())
                self.words, self.space = 0, False
        return self.tokens

    @property
    def _last(self) -> str:
        return self.tokens[-1].kind if self.tokens else "gap"

    @property
    def _after_value(self) -> bool:
        return self._last in ("number", ")") or self.words > 0

    def _next(self, end: int) -> str:
        """The character that follows, spaces apart."""
        return self.text[end : end + 4].lstrip()[:1]

    def _value_follows(self, end: int) -> bool:
        return self._next(end).isdigit() or self._next(end) in tuple("($.€£¥")

    def _letter(self, written: str, end: int) -> tuple[str, str]:
        """Kind and text of a single letter: a sign of multiplication, a unit, or an unknown."""
        if written in _TIMES_LETTERS and self._after_value and self._value_follows(end):
            return "operator", "*"
        is_unit = written in _UNIT_LETTERS and self.space and self._last in ("number", ")") and not self.words
        return ("unit" if is_unit else "bad"), written

    def _is_mere_unit(self, written: str, end: int) -> bool:
        """Whether a word only says what the value before it counts; another one becomes a token here."""
        word = written.lstrip("-/ ").removeprefix("per ").lower()
        takes_part = self._last == "number" and not self.words and _is_part(self.tokens)
        if word == "of" and takes_part and self._value_follows(end):
            self.tokens.append(Token("operator", "*", spaced=self.space))
        elif word in _CHANGING or (word == "and" and _goes_on_mixed(self.tokens, self.text, end)):
            self.tokens.append(Token("bad"))
        elif word == "of" and self._last == "bad":
            pass
        elif self._after_value and self.words < _MOST_UNIT_WORDS:
            return True
        else:
            # A word with an operation behind it stands for a number that is not known
            following = self._next(end)
            self.tokens.append(Token("bad" if following and following in "+*/^×÷·" else "gap"))
        return False

    def _take(self, kind: str, written: str, end: int) -> None:
        if kind == "percent" and self._last == "number" and not self.words:
            self.tokens[-1] = self.tokens[-1].as_percent()
        elif kind in ("number", "mixed"):
            if self._after_value:
                # Without a word between them two numbers may be one, as in 10 000
                self.tokens.append(Token("gap" if self.words else "bad"))
            self.tokens.append(Token.of_number(written, kind == "mixed", spaced=self.space))
        elif kind == "bracket":
            if written == "(" and self._after_value:
                attached = not self.space and not self.words
                self.tokens.append(Token("operator", "*", spaced=self.space) if attached else Token("gap"))
            self.tokens.append(Token(written))
        elif kind in ("operator", "power"):
            self.tokens.append(self._operator(kind, _OPERATORS.get(written, written), end))
        else:
            is_equals = kind == "equals" and written == "="
            self.tokens.append(Token("=" if is_equals else "bad" if kind in ("equals", "bad") else "gap"))

    def _operator(self, kind: str, sign: str, end: int) -> Token:
        if kind == "operator" and sign == "/" and not self.space and _over_a_fraction(self.tokens):
            return Token("bad")
        return Token("operator", sign, spaced=self.space or self._next(end) == "")


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
