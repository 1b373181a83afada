"""Values of arithmetic expressions, given as tokens, in exact fractions and within fixed bounds."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

_MOST_TOKENS, _MOST_DIGITS, _LARGEST_EXPONENT, _MOST_BITS = 200, 40, 64, 4096
_PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2, "^": 4}
_SIGN = 3


@dataclass(frozen=True)
class Token:
    """A piece of an expression.

    Attributes:
        kind: "number", "operator", "sign", "(", ")", or what separates expressions.
        text: operator.
        value: of a number.
        decimals: digits after a number's point.
        percent: whether a per cent sign follows the number.
        spaced: whether white space stands before it.
    """

    kind: str
    text: str = ""
    value: Fraction | None = None
    decimals: int = 0
    percent: bool = False
    spaced: bool = False

    @classmethod
    def of_number(cls, written: str, mixed: bool, spaced: bool) -> "Token":
        """The token of a number, `bad` if it is longer than any that a solution holds."""
        plain = written.replace(",", "")
        if len(plain) > _MOST_DIGITS:
            return cls("bad")
        if mixed:
            whole, part = plain.split(" ")
            over, under = part.split("/")
            return (
                cls("number", value=int(whole) + Fraction(int(over), int(under)), spaced=spaced)
                if int(under)
                else (cls("bad"))
            )
        decimals = len(plain.partition(".")[2])
        return cls("number", value=Fraction(plain), decimals=decimals, spaced=spaced)

    def as_percent(self) -> "Token":
        """The number with a per cent sign."""
        return replace(self, percent=True)

    def as_sign(self) -> "Token":
        """The operator as the sign of the number behind it."""
        return replace(self, kind="sign")


def evaluate(tokens: Sequence[Token], percent: bool = True) -> Fraction | None:
    """Value of an expression with + − * / ^, signs and brackets, by the usual precedence.

    Args:
        tokens: the whole expression.
        percent: whether a per cent sign divides its number by 100.

    Returns:
        The value; None for what is no expression or leaves the bounds.

    Raises:
        ZeroDivisionError: it divides by zero.
    """
    if len(tokens) > _MOST_TOKENS:
        return None
    values: list[Fraction] = []
    waiting: list[Token] = []
    wants_value = True
    for token in tokens:
        match token.kind:
            case "number" if wants_value:
                assert token.value is not None
                values.append(token.value / 100 if token.percent and percent else token.value)
                wants_value = False
            case "(" if wants_value:
                waiting.append(token)
            case "sign" | "operator" if wants_value and token.text in "+-":
                waiting.append(token.as_sign())
            case "operator" if not wants_value:
                if not _reduce(values, waiting, _PRECEDENCE[token.text], token.text == "^"):
                    return None
                waiting.append(token)
                wants_value = True
            case ")" if not wants_value:
                if not _reduce(values, waiting, 0, False) or not waiting:
                    return None
                waiting.pop()
            case _:
                return None
    if wants_value or not _reduce(values, waiting, 0, False) or waiting:
        return None
    return values[0]


def _reduce(values: list[Fraction], waiting: list[Token], precedence: int, from_right: bool) -> bool:
    """Apply the waiting operations that bind at least as tightly; False if one of them has no value."""
    while waiting and waiting[-1].kind != "(":
        token = waiting[-1]
        own = _SIGN if token.kind == "sign" else _PRECEDENCE[token.text]
        if own < precedence or (own == precedence and from_right):
            return True
        waiting.pop()
        right = values.pop()
        result = (
            (-right if token.text == "-" else right)
            if token.kind == "sign"
            else (_apply(token.text, values.pop(), right))
        )
        if result is None or max(result.numerator.bit_length(), result.denominator.bit_length()) > _MOST_BITS:
            return False
        values.append(result)
    return True


def _apply(operator: str, left: Fraction, right: Fraction) -> Fraction | None:
    match operator:
        case "+":
            return left + right
        case "-":
            return left - right
        case "*":
            return left * right
        case "/":
            return left / right
    if right.denominator != 1 or abs(right) > _LARGEST_EXPONENT:
        return None
    return left ** int(right)
