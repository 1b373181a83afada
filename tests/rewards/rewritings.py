"""Common other ways to write a gold answer, and wrong answers made from it. By text alone, not by the checker."""

import re
from collections.abc import Iterator
from fractions import Fraction

_DECIMAL = re.compile(r"-?[0-9]*\.?[0-9]+")
_SIMPLE_FRACTION = re.compile(r"(-?)\\[dt]?frac(?:\{([0-9]+)\}\{([0-9]+)\}|\s*([0-9])\s*([0-9]))")
_SLASHED = re.compile(r"(-?)([0-9]+)/([0-9]+)")
_HAN_DIGITS = "零一二三四五六七八九"


def value_of(answer: str) -> Fraction | None:
    """The value of an answer that is a plain number or fraction."""
    plain = re.sub(r"\\[!,] ?|,|\\?\$", "", answer)
    if _DECIMAL.fullmatch(plain):
        return Fraction(plain)
    for pattern in (_SIMPLE_FRACTION, _SLASHED):
        if found := pattern.fullmatch(plain):
            over, under = [part for part in found.groups()[1:] if part is not None]
            return Fraction(int(found[1] + over), int(under))
    return None


def _decimal(value: Fraction) -> str | None:
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    if rest != 1:
        return None
    text = f"{float(value):.12f}".rstrip("0").rstrip(".")
    return text if Fraction(text) == value else None


def _of_number(value: Fraction) -> Iterator[tuple[str, str]]:
    sign, over, under = "-" if value < 0 else "", abs(value.numerator), value.denominator
    decimal = _decimal(value)
    if under > 1:
        yield "slash", f"{sign}{over}/{under}"
        yield "frac", rf"{sign}\frac{{{over}}}{{{under}}}"
        yield "dfrac", rf"{sign}\dfrac{{{over}}}{{{under}}}"
        yield "tfrac", rf"{sign}\tfrac{{{over}}}{{{under}}}"
        yield "frac, sign inside", rf"\frac{{{sign}{over}}}{{{under}}}"
        yield "not in lowest terms", rf"{sign}\frac{{{3 * over}}}{{{3 * under}}}"
        if over < 10 and under < 10:
            yield "frac without braces", rf"{sign}\frac{over}{under}"
            yield "frac with a space", rf"{sign}\frac {over} {under}"
        if over > under:
            yield "mixed", rf"{sign}{over // under}\frac{{{over % under}}}{{{under}}}"
            yield "mixed with a slash", f"{sign}{over // under} {over % under}/{under}"
    if decimal is not None:
        yield "decimal", decimal
        yield "decimal with zeros", f"{decimal}0" if "." in decimal else f"{decimal}.00"
        if abs(value) < 1 and value != 0 and (percent := _decimal(value * 100)):
            yield "percent", rf"{percent}\%"
            yield "percent sign", f"{percent}%"
        if "." in decimal and decimal.lstrip("-").startswith("0"):
            yield "no leading zero", decimal.replace("0.", ".", 1)
    if under == 1:
        yield "over one", rf"{sign}\frac{{{over}}}{{1}}"
        if over >= 1000:
            yield "commas", f"{sign}{over:,}"
            yield "thin spaces", f"{sign}{over:,}".replace(",", r",\!")
            yield "braced commas", f"{sign}{over:,}".replace(",", "{,}")
            digits = str(over).rstrip("0")
            power = len(str(over)) - 1
            yield "scientific", rf"{sign}{digits[0]}.{digits[1:] or '0'} \times 10^{{{power}}}"
        yield "sign", ("−" if value < 0 else "+") + str(over)


def _of_latex(answer: str) -> Iterator[tuple[str, str]]:
    yield "spaces", f" {answer} "
    yield "dollars", f"${answer}$"
    yield "full stop", f"{answer}."
    yield "display", rf"\displaystyle {answer}"
    if re.search(r"\\[a-z]*frac", answer):
        yield "dfrac", re.sub(r"\\[a-z]*frac", r"\\dfrac", answer)
        yield "tfrac", re.sub(r"\\[a-z]*frac", r"\\tfrac", answer)
    if re.search(r"\\frac\{[0-9]\}\{[0-9]\}", answer):
        yield "without braces", re.sub(r"\\frac\{([0-9])\}\{([0-9])\}", r"\\frac\1\2", answer)
    if answer[0] in "([" and answer[-1] in ")]" and "," in answer:
        yield "left and right", rf"\left{answer[0]}{answer[1:-1]}\right{answer[-1]}"
        yield "no spaces", answer.replace(" ", "").replace(r"\left(", "(").replace(r"\right)", ")")
    if r"\left" in answer:
        yield "no left and right", answer.replace(r"\left", "").replace(r"\right", "")
    if re.fullmatch(r"[-0-9a-z^ +\\{}]+", answer) and "frac" not in answer and "text" not in answer:
        yield "no spaces", re.sub(r" (?![a-z])", "", answer)
    if r"^\circ" in answer:
        yield "degrees dropped", answer.replace(r"^\circ", "")
        yield "degrees in braces", answer.replace(r"^\circ", r"^{\circ}")
        yield "degrees in words", answer.replace(r"^\circ", r" \text{ degrees}")
        yield "degree sign", answer.replace(r"^\circ", "°")
    if r"\text{ " in answer:
        yield "units dropped", re.sub(r"\\text\{ [^}]*\}", "", answer)
    if re.fullmatch(r"\\text\{.*\}", answer):
        yield "plain text", answer[6:-1]
        yield "capitals", answer[6:-1].upper()
        yield "textbf", answer.replace(r"\text", r"\textbf")
        yield "choice without brackets", answer[6:-1].strip("()")
    if "pmatrix" in answer:
        yield "bmatrix", answer.replace("pmatrix", "bmatrix")
        yield "no spaces", re.sub(r" ", "", answer)
        yield "frac in it", re.sub(r"(-?)([0-9]+)/([0-9]+)", r"\1\\frac{\2}{\3}", answer)
    if r"\sqrt" in answer:
        yield "root without braces", re.sub(r"\\sqrt\{([0-9])\}", r"\\sqrt\1", answer)
        yield "root with braces", re.sub(r"\\sqrt([0-9])", r"\\sqrt{\1}", answer)
        yield "times a root", re.sub(r"([0-9]) ?\\sqrt", r"\1 \\cdot \\sqrt", answer)
    if re.fullmatch(r"[0-9]+_\{?[0-9]\}?", answer):
        digits, base = answer.replace("{", "").replace("}", "").split("_")
        yield "base in braces", f"{digits}_{{{base}}}"
        yield "base without braces", f"{digits}_{base}"
    if found := re.fullmatch(r"([a-z]) ?= ?([-0-9a-z\\{}]+)", answer):
        yield "name dropped", found[2]
        yield "spaced name", f"{found[1]} = {found[2]}"
    if value_of(answer) is None and re.fullmatch(r"[-0-9]+(?:, ?[-0-9]+)+", answer):
        parts = [part.strip() for part in answer.split(",")]
        yield "other order", ", ".join(reversed(parts))
        yield "as a set", rf"\{{{', '.join(parts)}\}}"
        yield "and", r" \text{ and } ".join([", ".join(parts[:-1]), parts[-1]])
        yield "or, names", " or ".join(f"x = {part}" for part in parts)
    if found := re.fullmatch(r"(.*) \\pm (.*)", answer):
        yield "both signs", f"{found[1]} - {found[2]}, {found[1]} + {found[2]}"
    if answer.startswith("-13x"):
        yield "other order of terms", "3 - 13x"


def rewritings(answer: str, data: str) -> Iterator[tuple[str, str]]:
    """Other ways to write a gold answer of a data set: pairs of what was done and the text."""
    value = value_of(answer)
    if value is not None:
        yield from _of_number(value)
        yield "name added", f"x = {answer}"
        if data != "CMATH":
            yield "unit added", rf"{answer} \text{{ units}}"
            yield "unit in a word", f"{answer} apples"
        if value > 0 and data == "GSM8K":
            yield "money", f"${answer}"
            yield "money in LaTeX", rf"\${answer}.00" if value.denominator == 1 else rf"\${answer}"
            yield "dollars after", f"{answer} dollars"
    if data != "CMATH":
        yield from _of_latex(answer)
        return
    yield "full width", answer.translate({ord(c): ord(c) + 0xFEE0 for c in "0123456789./"})
    for unit in ("元", "个", "千米", "平方厘米", "元钱"):
        yield "unit", f"{answer}{unit}"
        yield "unit and full stop", f"{answer} {unit}。"
    yield "sentence", f"一共是{answer}个。"
    if "/" in answer:
        over, under = answer.split("/")
        yield "parts", f"{under}分之{over}"
        yield "parts in characters", f"{in_characters(int(under))}分之{in_characters(int(over))}"
    elif value is not None and value.denominator == 1:
        yield "characters", in_characters(int(value))
        yield "characters and unit", in_characters(int(value)) + "元"
    if value is not None and 0 < value < 1 and (percent := _decimal(value * 100)):
        yield "percent in characters", f"百分之{percent}"


def in_characters(number: int) -> str:
    """A number below 10^8 in Chinese characters."""
    if number >= 10_000:
        high, low = divmod(number, 10_000)
        zero = "零" if 0 < low < 1000 else ""
        return f"{in_characters(high)}万{zero}{in_characters(low) if low else ''}"
    text, zero = "", False
    for unit, sign in ((1000, "千"), (100, "百"), (10, "十"), (1, "")):
        digit, number = divmod(number, unit)
        if digit:
            text += ("零" if zero and text else "") + _HAN_DIGITS[digit] + sign
            zero = False
        else:
            zero = True
    text = text or "零"
    return text.removeprefix("一") if text.startswith("一十") else text


def _wrong_number(value: Fraction) -> Iterator[tuple[str, str]]:
    def write(number: Fraction) -> str:
        if number.denominator == 1:
            return str(number.numerator)
        return f"{'-' if number < 0 else ''}\\frac{{{abs(number.numerator)}}}{{{number.denominator}}}"

    for name, other in (
        ("one more", value + 1), ("one less", value - 1), ("sign", -value), ("ten times", value * 10),
        ("a tenth", value / 10), ("double", value * 2), ("a hundredth", value / 100), ("hundredfold", value * 100),
        ("nearly", value + Fraction(1, 10**7)), ("half more", value + Fraction(1, 2)), ("squared", value * value),
        ("reciprocal", 1 / value if value else value + 1),
    ):  # fmt: skip
        if other != value:
            yield name, write(other)
    yield "or", f"{value} or {value + 1}"
    yield "and in LaTeX", rf"{write(value)} \text{{ and }} {write(value + 1)}"
    yield "list", f"{write(value)}, {write(value + 1)}"
    yield "pair", f"({write(value)}, {write(value)})"
    yield "variable", f"{write(value)}x"
    yield "power", f"({write(value)})^{{7}} + 3"
    yield "power of ten", rf"{write(value + 1)} \times 10^{{2}}"
    yield "not", f"not {value}"
    yield "million", f"{value} million"
    for digits in (3, 6):
        if Fraction(rounded := f"{float(value):.{digits}f}") != value:
            yield f"rounded to {digits}", rounded
    if value != 0 and value.denominator == 1:
        yield "in per cent", rf"{value}\%"  # wrong unless the problem asks for per cent


def _wrong_latex(answer: str) -> Iterator[tuple[str, str]]:
    yield "minus", f"-({answer}) - 1"
    yield "plus one", f"{answer} + 1"
    yield "with another", f"{answer}, 10007"
    swaps = {"(": "[", "[": "(", ")": "]", "]": ")"}
    if re.fullmatch(r"[(\[].*,.*[)\]]", answer) and "left" not in answer:
        yield "other opening", swaps[answer[0]] + answer[1:]
        yield "other closing", answer[:-1] + swaps[answer[-1]]
        yield "both brackets", swaps[answer[0]] + answer[1:-1] + swaps[answer[-1]]
        parts = answer[1:-1].split(",")
        yield "ends swapped", answer[0] + ",".join(reversed(parts)) + answer[-1]
        yield "without brackets", answer[1:-1]
        yield "first only", parts[0]
        yield "as a set", rf"\{{{answer[1:-1]}\}}"
    if "pmatrix" in answer:
        yield "first entry", re.sub(r"(\\begin\{pmatrix\} -?)[0-9]+", r"\g<1>99", answer)
        yield "transposed", answer.replace(r"\\", "&") if "&" not in answer else answer.replace("&", r"\\")
        cells = re.sub(r"\\(begin|end)\{pmatrix\}", "", answer).split(r"\\")
        if len(set(cells)) > 1:
            yield "rows swapped", r"\begin{pmatrix}" + r"\\".join(reversed(cells)) + r"\end{pmatrix}"
    if re.fullmatch(r"[0-9]+_\{?[0-9]\}?", answer):
        digits, base = answer.replace("{", "").replace("}", "").split("_")
        yield "other base", f"{digits}_{int(base) + 1}"
        yield "no base", digits
        yield "other digits", f"1{digits}_{base}"
        yield "last digit", f"{digits[:-1]}{(int(digits[-1]) + 1) % int(base)}_{base}"
    if r"\sqrt" in answer:
        yield "no root", re.sub(r"\\sqrt", "", answer)
        yield "other root", re.sub(r"\\sqrt\{?([0-9]+)\}?", lambda r: rf"\sqrt{{{int(r[1]) + 1}}}", answer)
    if r"\pi" in answer and "," not in answer:
        yield "no pi", answer.replace(r"\pi", "1") if "frac" in answer else answer.replace(r"\pi", "")
        yield "pi rounded", answer.replace(r"\pi", r"\cdot 3.141593") if "frac" not in answer else "-0.523599"
    if re.search(r"[0-9]i$", answer):
        yield "conjugate", answer.replace("+", "?").replace("-", "+").replace("?", "-")
    if "x" in answer and "text" not in answer and "=" not in answer:
        yield "other variable", answer.replace("x", "y")
        yield "capital", answer.replace("x", "X")
    if r"^\circ" in answer:
        yield "other unit", answer.replace(r"^\circ", r"\text{ cm}")
        yield "one degree more", str(int(answer.split("^")[0]) + 1) + r"^\circ"
    if found := re.fullmatch(r"\\text\{(.*)\}", answer):
        yield "other text", r"\text{" + found[1] + "x}"
        yield "other choice", r"\text{(E)}"
        yield "negated", rf"\text{{not {found[1]}}}"
    if re.fullmatch(r"[-0-9]+(?:, ?[-0-9]+)+", answer):
        parts = answer.split(",")
        yield "one missing", ",".join(parts[1:])
        yield "one changed", ",".join([*parts[1:], "77"])
        yield "one twice", ",".join([parts[0], parts[0], *parts[2:]])
        yield "as a tuple", f"({answer})"


def wrong(answer: str, other: str) -> Iterator[tuple[str, str]]:
    """Wrong answers near a gold answer, and another problem's answer."""
    value, another = value_of(answer), value_of(other)
    if value is not None:
        yield from _wrong_number(value)
    else:
        yield from _wrong_latex(answer)
    if other != answer and (value is None or value != another):
        yield "another problem's", other
