r"""Equality of LaTeX expressions by math-verify, bounded so that no text can stop a run.

math-verify limits its time with an alarm signal, which exists in the main thread only. Here its alarms are off and
three other bounds hold, in any thread and process and the same on every machine:

1. Before parsing: at most `MAX_CHARACTERS` characters, `MAX_DEPTH` nested brackets, exponents of at most
   `MAX_EXPONENT` and no towers of them, and only the commands of `COMMANDS`, which leaves out sums, integrals, limits
   and binomials. A number like `9^{9^{9^9}}` is one single instruction to Python, which nothing can interrupt.
2. After parsing, before sympy computes: the numbers that the expression stands for may have `MAX_DIGITS` digits.
   Symbols count as `SYMBOL_DIGITS`, which bounds the degree of polynomials. Where a function is compared, a
   third of that, and only `MAX_DIGITS_BESIDE_FUNCTIONS` in numbers, because sympy turns `n log(a)` into `log(a^n)`.
3. While parsing and comparing: `MAX_CALLS` calls of Python functions, counted by a trace function. A count does not
   depend on how busy the machine is, so the same text gets the same reward.

What breaks a bound is unreadable: a gold answer then scores `None`, a completion 0.
"""

import functools
import inspect
import logging
import math
import re
import sys
import threading
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")
Expressions = list[Any]  # what math_verify.parse returns: sympy expressions

MAX_CHARACTERS = 200
MAX_DEPTH = 8
MAX_EXPONENT = 10_000
MAX_DIGITS = 3_000.0
MAX_DIGITS_BESIDE_FUNCTIONS = 6.0
SYMBOL_DIGITS, EXPONENT_SYMBOL_DIGITS = 20.0, 0.5  # a degree of at most 150, and e^{-x^2} is not a tower
MAX_CALLS = 400_000  # a third of a second or so; the slowest of 750 comparisons of MATH answers needs 270,000

COMMANDS = frozenset(
    r"""
    frac dfrac tfrac cfrac sqrt cdot times div pm mp circ degree infty pi
    alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau upsilon
    phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega
    sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln exp
    left right text textbf textit textrm mathrm mathbf mathit mathbb mbox displaystyle quad qquad
    begin end cup cap in notin le leq ge geq lt gt ne neq emptyset varnothing setminus mid to equiv
    lfloor rfloor lceil rceil lvert rvert vert langle rangle overline angle triangle ldots dots
    """.split()
)
_COMMAND = re.compile(r"\\([A-Za-z]+)")
_INTEGER = re.compile(r"[0-9]+")
# What comes after the sign of a power without brackets: a number, a command, or one character.
_BARE_EXPONENT = re.compile(r"-?[0-9.,]+|\\[A-Za-z]+|[^{(]")
# Inside an exponent: a power of a number or of a bracket, a factorial, a rounding to an integer.
_TOWER = re.compile(r"[0-9)}\]|!]\s*\^|!|\\[lr](?:floor|ceil)")
# Delimiters of mathematics around the answer; escaped ones are money.
_DELIMITERS = re.compile(r"\\[()\[\]]|(?<!\\)\$")
_DEPTH = {"{": 1, "(": 1, "[": 1, "}": -1, ")": -1, "]": -1}
# Two threads in sympy would share mpmath's one working precision.
_LOCK = threading.Lock()


class OutOfBoundsError(BaseException):
    """The call budget is spent. Not an Exception, because math-verify and sympy catch those and go on."""


def _within_bounds(text: str) -> bool:
    """Tell whether a LaTeX text is short, shallow and made of known commands (bound 1)."""
    if len(text) > MAX_CHARACTERS or not COMMANDS.issuperset(_COMMAND.findall(text)):
        return False
    depth = 0
    for character in text:
        depth += _DEPTH.get(character, 0)
        if depth > MAX_DEPTH:
            return False
    return _has_small_exponents(text)


def _has_small_exponents(text: str) -> bool:
    """Tell whether no power in a LaTeX text, nor a power of a power, is above `MAX_EXPONENT` (bound 1)."""
    of_number, of_brackets = 1, 1
    for sign in re.finditer(r"\^\s*", text):
        exponent = _bracketed(text, sign.end())
        if exponent is None or _TOWER.search(exponent):
            return False
        if text[sign.end() + len(exponent) :].lstrip().startswith("^"):
            return False
        value = math.prod(int(digits) for digits in _INTEGER.findall(exponent) if int(digits))
        base = text[: sign.start()].rstrip()[-1:]
        if base.isdigit():
            of_number = max(of_number, value)
        elif not base.isalpha():
            of_brackets *= value
        if max(value, of_number * of_brackets) > MAX_EXPONENT:
            return False
    return True


def _bracketed(text: str, start: int) -> str | None:
    """Return what stands at `start`: a group with its brackets, a number, a command or a character."""
    if bare := _BARE_EXPONENT.match(text, start):
        return bare[0]
    depth = 0
    for end in range(start, len(text)):
        depth += _DEPTH.get(text[end], 0)
        if depth == 0:
            return text[start : end + 1]
    return None


def _parts(expression: Any) -> Sequence[Any]:
    """Return what an expression, a matrix or a set is made of."""
    import sympy

    if isinstance(expression, sympy.MatrixBase):
        return expression.flat()
    return expression.args if isinstance(expression, sympy.Basic) else ()


def _digits(expression: Any, symbol: float = SYMBOL_DIGITS) -> float:
    """Return a bound on the decimal digits of the numbers that an expression stands for (bound 2).

    A symbol counts as `symbol` digits, so that a power of it is bounded by its degree.
    """
    import sympy
    from sympy.functions.elementary.hyperbolic import HyperbolicFunction

    if isinstance(expression, sympy.Rational):
        return math.log10(max(abs(int(expression.p)), int(expression.q)))
    if isinstance(expression, sympy.Float):
        return max(1.0, float(sympy.log(abs(expression), 10))) if expression else 1.0
    parts = _parts(expression)
    if not parts:
        return symbol  # symbols, π, e, i
    if isinstance(expression, sympy.Pow | sympy.MatPow | sympy.exp | HyperbolicFunction):
        # |x| <= 10^d for a number of d digits, and a power has |x| times the digits of its base.
        exponent = _digits(parts[-1], EXPONENT_SYMBOL_DIGITS)
        base = _digits(parts[0], symbol) if len(parts) == 2 else symbol
        return base * 10.0**exponent if exponent < 10 else math.inf
    digits = [_digits(part, symbol) for part in parts]
    if isinstance(expression, sympy.factorial | sympy.factorial2 | sympy.subfactorial):
        return 10.0 ** (digits[0] + 0.5) if digits[0] < 10 else math.inf
    return sum(digits)


def _has_functions(expression: Any) -> bool:
    """Tell whether an expression holds a function of analysis or a power whose exponent is not a number."""
    import sympy
    from sympy.functions.combinatorial.factorials import CombinatorialFunction

    if isinstance(expression, sympy.Function) and not isinstance(expression, CombinatorialFunction | sympy.Abs):
        return True
    if isinstance(expression, sympy.Pow) and expression.exp.args:
        return True
    return any(map(_has_functions, _parts(expression)))


def _affordable(*expressions: Any) -> bool:
    """Tell whether sympy can compare expressions without numbers that take long to compute (bound 2)."""
    if not any(map(_has_functions, expressions)):
        return all(_digits(expression) <= MAX_DIGITS for expression in expressions)
    return all(
        _digits(expression) <= MAX_DIGITS / 3 and _digits(expression, symbol=0.0) <= MAX_DIGITS_BESIDE_FUNCTIONS
        for expression in expressions
    )


def _bounded(work: Callable[[], T], default: T) -> T:
    """Run `work` under the call budget (bound 3); return `default` if it needs more."""
    calls = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        calls += 1
        # A generator or finaliser may have been entered by the garbage collector, where the error would be lost.
        if calls > MAX_CALLS and not (
            frame.f_code.co_flags & inspect.CO_GENERATOR or frame.f_code.co_name == "__del__"
        ):
            raise OutOfBoundsError

    with _LOCK:
        before = sys.gettrace()
        sys.settrace(count)
        try:
            return work()
        except OutOfBoundsError:
            sys.settrace(None)
            _forget_unfinished_work()
            return default
        finally:
            sys.settrace(before)


def _forget_unfinished_work() -> None:
    """Reset what an interrupted sympy may leave behind: half-known facts in its caches, a changed precision."""
    import mpmath
    from math_verify import parser
    from sympy.core.cache import clear_cache
    from sympy.core.parameters import global_parameters

    clear_cache()
    parser.parse_latex_cached.cache_clear()
    parser.extract_latex.cache_clear()
    mpmath.mp.prec = 53
    global_parameters.evaluate = True


@functools.cache
def _library() -> tuple[Callable[..., Expressions], Callable[..., bool], Any]:
    """Return math-verify's `parse` and `verify` and the way of reading, warmed up.

    The first parse compiles the grammar, which must not count against the budget of the first answer.
    """
    from math_verify import LatexExtractionConfig, parse, verify

    # It warns that its timeouts are off; the bounds of this module replace them.
    for name in ("math_verify.parser", "math_verify.grader"):
        logging.getLogger(name).addFilter(_is_no_timeout_warning)
    # The box is the one anchor that tells math-verify to take all of the text, and not to search in it.
    config = LatexExtractionConfig(boxed_match_priority=0, try_extract_without_anchor=False)
    with _LOCK:
        for text in (r"\left( 3, \frac{\pi}{2} \right)", r"\{x^2, y\}", r"2x < 1"):
            parse(f"\\boxed{{{text}}}", [config], fallback_mode="no_fallback", parsing_timeout=None)
    return parse, verify, config


def _is_no_timeout_warning(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("Timeout is disabled")


def read_expressions(text: str) -> Expressions | None:
    """Parse the LaTeX of one answer.

    Args:
        text: The answer alone, with or without dollar signs around it.

    Returns:
        math-verify's reading of it, or `None` when it is out of bounds or not mathematics.

    Raises:
        ImportError: math-verify is not installed.
    """
    parse, _, config = _library()
    text = _DELIMITERS.sub(" ", text).strip()
    if not text or not _within_bounds(text):
        return None
    boxed = f"\\boxed{{{text}}}"
    expressions = _bounded(
        lambda: parse(boxed, [config], fallback_mode="no_fallback", parsing_timeout=None), default=None
    )
    if not expressions or not _affordable(*expressions):
        return None
    return expressions


def equivalent(gold: Expressions, answer: str) -> bool:
    """Tell whether the LaTeX `answer` equals the parsed `gold`; an answer that is out of bounds does not.

    Args:
        gold: What `read_expressions` returned for the gold answer.
        answer: The completion's answer alone.

    Returns:
        math-verify's verdict.
    """
    _, verify, _ = _library()
    expressions = read_expressions(answer)
    if expressions is None or not _affordable(*gold, *expressions):
        return False
    return _bounded(lambda: verify(gold, expressions, timeout_seconds=None), default=False)
