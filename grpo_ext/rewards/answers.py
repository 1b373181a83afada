r"""Whether two written answers are the same: their structure first, then the parts, then mathematics.

An answer is a list, tuple, interval, union, matrix, equation, number in some base, piece of text, or an expression.
The structure must be the same, so that `(3, 4]` is not `[3, 4)` and `7 or 8` is not `8`. Parts that are numbers are
compared exactly; only what is left goes to math-verify, within the bounds of `symbolic`. Both answers share one budget
of work, whatever their number of parts.

What is accepted beside equal mathematics: a unit, currency or `x =` that only one of the two writes, elements of a
list or set in any order, and text in other letter case. A unit that differs from the gold answer's is a wrong answer.
"""

import functools
import re
from dataclasses import dataclass
from fractions import Fraction

from grpo_ext.rewards import symbolic
from grpo_ext.rewards.chinese import chinese_number, has_chinese
from grpo_ext.rewards.exact import Quantity, quantity
from grpo_ext.rewards.latex import MAX_CHARACTERS, ROW_END, clean, is_one_group, split
from grpo_ext.rewards.symbolic import Expressions, Work

MAX_PARTS = 40
_NAME = re.compile(
    r"^(?P<name>[A-Za-z](?:_\{?\w{1,3}\}?)?'?(?:\([A-Za-z]\))?)\s*(?:=|\\in(?![A-Za-z]))\s*(?P<rest>[^=<>]+)$"
)
_TEXT = re.compile(r"^\\text\s*\{([^{}]*)\}$|^([A-Za-z]{3,}(?:[ '-][A-Za-z]{3,})*[ '-]?)$")
_CHOICE = re.compile(r"^\(?([A-Za-z])\)?$")
_JOIN = re.compile(r"\\text\s*\{\s*(?:,\s*)?(?:and|or)\s*\}|,?(?<![A-Za-z\\])\b(?:and|or)\b(?![A-Za-z])")
_BASE = re.compile(r"^([+-]?[0-9A-Fa-f]+)_(?:\{([0-9]{1,2})\}|([0-9]))$")
_BASE_WORD = re.compile(r"_\{?\\text\s*\{(two|three|four|five|six|seven|eight|nine)\}\}?$")
_BASE_WORDS = dict(zip("two three four five six seven eight nine".split(), range(2, 10), strict=True))
_MATRIX = re.compile(r"^\\begin\{pmatrix\}(.*)\\end\{pmatrix\}$", re.DOTALL)
_RELATION = re.compile(r"(\\le(?![A-Za-z])|\\ge(?![A-Za-z])|\\lt(?![A-Za-z])|\\gt(?![A-Za-z])|<=|>=|<|>)")
_FLIP = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}
_SAME = {r"\le": "<=", r"\ge": ">=", r"\lt": "<", r"\gt": ">"}
_APART = re.compile(r"[0-9] +[0-9.]")  # math-verify reads "1 2" as 12
_LETTERS = re.compile(r"\\[A-Za-z]+|([A-Za-z])")


@dataclass(frozen=True)
class Answer:
    """An answer taken apart.

    Args:
        kind: "list", "tuple", "interval", "union", "matrix", "base", "text" or "part".
        form: What must be equal beside the parts: brackets, shape, base, text.
        parts: What it is made of.
        name: The variable it is assigned to, if one is written.
        atom: The part itself with value and unit, for "part".
    """

    kind: str
    form: str = ""
    parts: tuple["Answer", ...] = ()
    name: str | None = None
    atom: Quantity | None = None


@functools.lru_cache(maxsize=4096)
def read(text: str) -> Answer:
    """Take a written answer apart."""
    return _read(clean(text), 0)


def _read(text: str, depth: int) -> Answer:
    """Take a cleaned answer apart. Structure ends at a depth that no answer needs."""
    if len(text) > MAX_CHARACTERS or depth > 3:
        return Answer("part", atom=Quantity(text, None, None))
    if named := _NAME.match(text):
        inner = _read(named["rest"].strip(), depth + 1)
        if inner.name is None and inner.kind != "list":
            return Answer(inner.kind, inner.form, inner.parts, named["name"], inner.atom)
    if (found := _TEXT.match(text)) and found[1] is not None and found[1].strip()[:1].isdigit():
        return _read(found[1].strip(), depth + 1)  # a number that was put into text with its unit
    if found:
        return Answer(
            "text", " ".join((found[1] if found[1] is not None else found[2]).casefold().split()).strip(" .,")
        )
    text = _BASE_WORD.sub(lambda word: f"_{{{_BASE_WORDS[word[1]]}}}", text)
    if found := _BASE.match(text):
        return Answer("base", f"{found[1].lstrip('0+').upper()}_{found[2] or found[3]}")
    return _interval_of(text, depth) or _group(text, depth) or _collection(text, depth) or _part(text)


def _part(text: str) -> Answer:
    if has_chinese(text) and (found := chinese_number(text)) is not None:
        return Answer("part", atom=Quantity(text, found[0], "%" if found[1] else None))
    return Answer("part", atom=quantity(text))


def _collection(text: str, depth: int) -> Answer | None:
    r"""Read unions, bare lists ("1, -2", "1 or -2") and `a \pm b`."""
    if r"\cup" in text:
        pieces = text.split(r"\cup")
        return Answer("union", parts=_all(pieces, depth)) if len(pieces) <= MAX_PARTS else None
    whole = quantity(text)
    if whole.value is not None:
        return None  # 1,234 is one number
    pieces = split(_JOIN.sub(",", text), ",;") or [text]
    pieces = [piece for piece in pieces if piece]
    if 1 < len(pieces) <= MAX_PARTS:
        return Answer("list", parts=_all(pieces, depth))
    if text.count(r"\pm") == 1 and r"\mp" not in text:
        plus = [text.replace(r"\pm", sign).strip().removeprefix("+").strip() for sign in ("+", "-")]
        return Answer("list", parts=_all(plus, depth))
    return None


def _all(pieces: list[str], depth: int) -> tuple[Answer, ...]:
    return tuple(_read(piece.strip(), depth + 1) for piece in pieces)


def _group(text: str, depth: int) -> Answer | None:
    """Read what stands in one pair of brackets: tuples, intervals, sets, matrices."""
    if matrix := _MATRIX.match(text):
        rows = [row.split("&") for row in matrix[1].strip().removesuffix(ROW_END).split(ROW_END)]
        cells = [cell for row in rows for cell in row]
        shape = ",".join(str(len(row)) for row in rows)
        return Answer("matrix", shape, _all(cells, depth)) if len(cells) <= MAX_PARTS else None
    if text.startswith(r"\{") and text.endswith(r"\}") and is_one_group(text):
        pieces = split(text[2:-2])
        if pieces and len(pieces) <= MAX_PARTS and not re.search(r"\\mid|[|:]", text):
            return Answer("list", parts=_all(pieces, depth))
        return None
    if text.startswith(r"\langle") and text.endswith(r"\rangle"):
        text = f"({text[7:-7]})"
    if len(text) < 3 or text[0] not in "([" or text[-1] not in ")]" or not is_one_group(text):
        return None
    pieces = split(text[1:-1])
    if not pieces or not 1 < len(pieces) <= MAX_PARTS:
        return None
    if text[0] + text[-1] == "()":
        return Answer("tuple", parts=_all(pieces, depth))
    return Answer("interval", text[0] + text[-1], _all(pieces, depth)) if len(pieces) == 2 else None


def _interval_of(text: str, depth: int) -> Answer | None:
    r"""Read inequalities in one variable as the intervals they stand for: `x \ge 2`, `1 < x \le 3`."""
    pieces = [piece.strip() for piece in _RELATION.split(text)]
    if len(pieces) not in (3, 5):
        return None
    signs = [_SAME.get(sign, sign) for sign in pieces[1::2]]
    sides = pieces[::2]
    variable = [place for place, side in enumerate(sides) if re.fullmatch(r"[A-Za-z]", side)]
    if len(sides) == 3 and variable == [1] and signs[0][0] == signs[1][0]:
        if signs[0][0] == ">":
            sides, signs = sides[::-1], [_FLIP[sign] for sign in signs[::-1]]
        return _bounds(sides[0], signs[0], sides[2], signs[1], sides[1], depth)
    if len(sides) == 2 and len(variable) == 1:
        sign = signs[0] if variable == [0] else _FLIP[signs[0]]
        bound = sides[1 - variable[0]]
        name = sides[variable[0]]
        if sign[0] == "<":
            return _bounds(r"-\infty", "<", bound, sign, name, depth)
        return _bounds(bound, _FLIP[sign], r"\infty", "<", name, depth)
    return None


def _bounds(low: str, left: str, high: str, right: str, name: str, depth: int) -> Answer:
    brackets = ("[" if left == "<=" else "(") + ("]" if right == "<=" else ")")
    parts = _all([low, high], depth)
    return Answer("tuple", parts=parts, name=name) if brackets == "()" else Answer("interval", brackets, parts, name)


def same(gold: str, answer: str, percent: bool = False) -> bool:
    """Tell whether a written answer is the gold answer.

    Args:
        gold: The gold answer as written.
        answer: The completion's answer alone.
        percent: Whether the problem asks for per cent, so that "20%" and "20" are the same. Without it a per cent sign
            is worth a hundredth, unless the gold answer itself bears one and the answer leaves it away.

    Returns:
        Whether they are the same. Text that cannot be read, or only beyond the bounds of `symbolic`, is the same as
        its own repetition only.

    Raises:
        ImportError: math-verify is not installed and the comparison needs it.
    """
    left, right = gold.strip(), answer.strip()
    if not right or not left:
        return False
    if left == right:
        return True
    if len(right) > MAX_CHARACTERS or len(left) > MAX_CHARACTERS:
        return False
    return _same(read(left), read(right), percent, Work(symbolic.MAX_CALLS))


def _same(gold: Answer, answer: Answer, percent: bool, work: Work) -> bool:
    if gold.name is not None and answer.name is not None and _conflict(gold.name, answer.name):
        return False
    if gold.kind == "text" or answer.kind == "text":
        return _same_text(gold, answer)
    if gold.kind != answer.kind:
        return gold.kind == "list" and answer.kind == "part" and _is_split_list(gold, answer, percent, work)
    if gold.kind == "part":
        return gold.atom is not None and answer.atom is not None and _same_part(gold.atom, answer.atom, percent, work)
    if gold.form != answer.form or len(gold.parts) != len(answer.parts):
        return False
    pairs = zip(gold.parts, answer.parts, strict=True)
    names = {part.name for part in gold.parts} - {None}
    in_order = gold.kind not in ("list", "union") or (len(names) > 1 and not any(part.name for part in answer.parts))
    if in_order:
        return all(_same(left, right, percent, work) for left, right in pairs)
    left_over = list(answer.parts)
    for part in gold.parts:
        # The sort puts what is written alike first, so that most comparisons cost nothing.
        left_over.sort(key=lambda other, part=part: other != part)  # type: ignore[misc]
        match = next((place for place, other in enumerate(left_over) if _same(part, other, percent, work)), None)
        if match is None:
            return False
        del left_over[match]
    return True


def _conflict(gold: str, answer: str) -> bool:
    """Tell whether two names stand for different things; y and f(x) may be the same."""
    return len(gold) == len(answer) == 1 and gold != answer


def _is_split_list(gold: Answer, answer: Answer, percent: bool, work: Work) -> bool:
    """Compare a gold list with what reads as one number with thousands: "100,200"."""
    pieces = answer.atom.rest.split(",") if answer.atom is not None else []
    if len(pieces) != len(gold.parts):
        return False
    return _same(gold, Answer("list", parts=_all(pieces, 1)), percent, work)


def _same_text(gold: Answer, answer: Answer) -> bool:
    words = [_words(gold), _words(answer)]
    return None not in words and words[0] == words[1]


def _words(answer: Answer) -> str | None:
    """Return the letters of a text answer, of a choice such as `(C)` the letter alone."""
    if answer.kind == "text":
        written = answer.form
    elif answer.kind == "part" and answer.atom is not None and answer.atom.value is None:
        written = re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", answer.atom.rest).strip()
    else:
        return None
    choice = _CHOICE.match(written)
    return choice[1].casefold() if choice else " ".join(written.casefold().split())


def _same_part(gold: Quantity, answer: Quantity, percent: bool, work: Work) -> bool:
    if gold.unit and answer.unit and gold.unit != answer.unit and "%" not in (gold.unit, answer.unit):
        return False
    if gold.value is not None and answer.value is not None:
        return _same_number(gold, answer, percent)
    if (gold.unit == "%") != (answer.unit == "%"):
        return False
    left, right = gold.rest, answer.rest
    if _APART.search(left) or _APART.search(right):
        return left == right
    if left.replace(" ", "") == right.replace(" ", ""):
        return True
    # math-verify takes two letters at the end for a unit, and x and X for one variable.
    if _variables(left) != _variables(right):
        return False
    if ("=" in left) != ("=" in right):
        return False
    expressions = _gold_expressions(_exactly(left, gold.value))
    if expressions is None:
        return False
    return symbolic.equivalent(expressions, _exactly(right, answer.value), work, exact=True)


def _variables(text: str) -> set[str]:
    """Return the letters of an expression that are not part of a command and no constant."""
    return set(_LETTERS.findall(text)) - {"", "e", "i"}


@functools.lru_cache(maxsize=1024)
def _gold_expressions(text: str) -> Expressions | None:
    """Read a gold part once for all completions of its group."""
    return symbolic.read_expressions(text)


def _exactly(text: str, value: Fraction | None) -> str:
    """Write a number as a fraction, which math-verify does not round."""
    if value is None or len(str(value)) > 100:
        return text
    if value.denominator == 1:
        return str(value)
    return f"{'-' if value < 0 else ''}\\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"


def _same_number(gold: Quantity, answer: Quantity, percent: bool) -> bool:
    if gold.value is None or answer.value is None:
        return False
    if gold.is_percent == answer.is_percent:
        return gold.value == answer.value
    if gold.is_percent:  # the sign left away, or the value itself
        return answer.value in (gold.value, gold.value / 100)
    return answer.value / 100 == gold.value or (percent and answer.value == gold.value)
