r"""Equality of LaTeX expressions by math-verify, bounded so that no text can stop a run.

math-verify limits its time with an alarm signal, which exists in the main thread only. Here its alarms are off and
three other bounds hold, in any thread and process:

1. Before parsing: at most `MAX_CHARACTERS` characters, `MAX_DEPTH` nested brackets, and only the commands of
   `COMMANDS`, which leaves out sums, integrals, limits and binomials.
2. After parsing, which is mostly lazy: the numbers that the expression stands for may have `MAX_DIGITS` digits.
   Symbols count as `SYMBOL_DIGITS` each, which bounds the degree of polynomials. Beside symbols and functions only
   `MAX_COEFFICIENT_DIGITS` are allowed, because sympy factors polynomials by way of primes as large as that.
3. While parsing and comparing, by a trace function: `MAX_CALLS` calls of Python functions, and no power of numbers
   with more than `MAX_DIGITS` digits. Simplifying can make large powers out of small numbers, as it turns `n log(a)`
   into `log(a^n)`, and such a power is one single instruction to Python, which nothing interrupts. Calls are counted,
   and not seconds, so that the same text gets the same reward on a busy machine.

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
from fractions import Fraction
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")
Expressions = list[Any]  # what math_verify.parse returns: sympy expressions

MAX_CHARACTERS = 200
MAX_DEPTH = 8
MAX_DIGITS = 2_000
MAX_COEFFICIENT_DIGITS = 40
SYMBOL_DIGITS, EXPONENT_SYMBOL_DIGITS = 20.0, 0.5  # a degree of at most 100, and e^{-x^2} is not a tower
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
EXACT_DIGITS = 12  # decimals are read with fifteen
SAMPLE_POINTS = (Fraction(3, 5), Fraction(17, 11))
_COMMAND = re.compile(r"\\([A-Za-z]+)")
# Delimiters of mathematics around the answer; escaped ones are money.
_DELIMITERS = re.compile(r"\\[()\[\]]|(?<!\\)\$")
_DEPTH = {"{": 1, "(": 1, "[": 1, "}": -1, ")": -1, "]": -1}
# Two threads in sympy would share mpmath's one working precision.
_LOCK = threading.Lock()


class OutOfBoundsError(BaseException):
    """Bound 3 is reached. Not an Exception, because math-verify and sympy catch those and go on."""


class Work:
    """What is left of a budget of calls that several readings and comparisons share."""

    def __init__(self, calls: int) -> None:
        self.calls = calls


def _within_bounds(text: str) -> bool:
    """Tell whether a LaTeX text is short, shallow and made of known commands (bound 1)."""
    if len(text) > MAX_CHARACTERS or not COMMANDS.issuperset(_COMMAND.findall(text)):
        return False
    depth = 0
    for character in text:
        depth += _DEPTH.get(character, 0)
        if depth > MAX_DEPTH:
            return False
    return True


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


def _is_arithmetic(expression: Any) -> bool:
    """Tell whether an expression is made of rational numbers, roots and factorials alone."""
    import sympy
    from sympy.functions.combinatorial.factorials import CombinatorialFunction

    if isinstance(expression, sympy.Function) and not isinstance(expression, CombinatorialFunction | sympy.Abs):
        return False
    parts = _parts(expression)
    return all(map(_is_arithmetic, parts)) if parts else isinstance(expression, sympy.Rational)


def _affordable(expression: Any) -> bool:
    """Tell whether the numbers in an expression are small enough for sympy to work with (bound 2)."""
    if _digits(expression) > MAX_DIGITS:
        return False
    return _is_arithmetic(expression) or _digits(expression, symbol=0.0) <= MAX_COEFFICIENT_DIGITS


def _is_large(power_rule: FrameType) -> bool:
    """Tell whether the frame of a power rule of sympy is about to compute a number beyond `MAX_DIGITS` (bound 3)."""
    import sympy

    base, exponent = power_rule.f_locals["self"], power_rule.f_locals["expt"]
    if not isinstance(exponent, sympy.Rational):
        return False
    bits = max(int(base.p).bit_length(), int(base.q).bit_length()) * abs(int(exponent.p))
    return bits > MAX_DIGITS / math.log10(2) * int(exponent.q)


def _bounded(work: Callable[[], T], default: T, shared: Work | None = None) -> T:
    """Run `work` within bound 3, and within what is left of `shared`; return `default` if it needs more."""
    import sympy

    most = MAX_CALLS if shared is None else min(MAX_CALLS, shared.calls)
    if most <= 0:
        return default

    integer_power, rational_power = sympy.Integer._eval_power.__code__, sympy.Rational._eval_power.__code__
    calls = 0

    def watch(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        calls += 1
        code = frame.f_code
        if (code is integer_power or code is rational_power) and _is_large(frame):
            raise OutOfBoundsError
        # A generator or finaliser may have been entered by the garbage collector, where the error would be lost.
        if calls > most and not (code.co_flags & inspect.CO_GENERATOR or code.co_name == "__del__"):
            raise OutOfBoundsError

    with _LOCK:
        before = sys.gettrace()
        sys.settrace(watch)
        try:
            return work()
        except OutOfBoundsError:
            sys.settrace(None)
            _forget_unfinished_work()
            return default
        finally:
            sys.settrace(before)
            if shared is not None:
                shared.calls -= calls


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


def read_expressions(text: str, work: Work | None = None) -> Expressions | None:
    """Parse the LaTeX of one answer.

    Args:
        text: The answer alone, with or without dollar signs around it.
        work: A budget that this call shares with others.

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
        lambda: parse(boxed, [config], fallback_mode="no_fallback", parsing_timeout=None), default=None, shared=work
    )
    if not expressions or not all(map(_affordable, expressions)):
        return None
    return expressions


def equivalent(gold: Expressions, answer: str, work: Work | None = None, exact: bool = False) -> bool:
    """Tell whether the LaTeX `answer` equals the parsed `gold`; an answer that is out of bounds does not.

    Args:
        gold: What `read_expressions` returned for the gold answer.
        answer: The completion's answer alone.
        work: A budget that this call shares with others.
        exact: Whether the two must also agree in `EXACT_DIGITS` digits at sample points. math-verify rounds to six
            decimals, so that 3.141593 is π to it.

    Returns:
        math-verify's verdict.
    """
    _, verify, _ = _library()
    expressions = read_expressions(answer, work)
    if expressions is None or not _bounded(lambda: verify(gold, expressions, timeout_seconds=None), False, work):
        return False
    return not exact or _bounded(lambda: _agree(gold[0], expressions[0]), False, work)


def _agree(gold: Any, answer: Any) -> bool:
    """Tell whether two expressions have the same value at sample points, as far as they have values."""
    import sympy

    if not (isinstance(gold, sympy.Expr) and isinstance(answer, sympy.Expr)):
        return isinstance(gold, sympy.Expr) == isinstance(answer, sympy.Expr)
    symbols = sorted(gold.free_symbols | answer.free_symbols, key=str)
    for start in SAMPLE_POINTS:
        point = {symbol: sympy.Rational(start) + sympy.Rational(place, 7) for place, symbol in enumerate(symbols)}
        # doit(), because math-verify leaves what it read unevaluated
        left, right = (sympy.N(side.subs(point).doit(), 30) for side in (gold, answer))
        if not (left.is_number and right.is_number and left.is_finite and right.is_finite):
            continue
        if abs(left - right) > abs(left) * sympy.Float(10) ** -EXACT_DIGITS:
            return False
    return True
