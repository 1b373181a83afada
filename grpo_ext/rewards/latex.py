r"""One spelling for the many ways to write the same LaTeX answer: `\dfrac12`, `\left(`, `10,\!080`, `\text{ cm}`.

Everything here is text to text in linear time; what an answer means is told in `answers`.
"""

import re

from grpo_ext.rewards.spellings import FOLD_ALL

MAX_CHARACTERS = 1_000  # a longer answer is compared character by character only

_UNICODE = {
    "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "∞": r"\infty ", "π": r"\pi ", "×": r"\times ", "·": r"\cdot ",
    "⋅": r"\cdot ", "÷": "/", "°": r"^{\circ}", "∪": r"\cup ", "±": r"\pm ", "²": "^{2}", "³": "^{3}",
    "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}",
    "∈": r"\in ", "\u00a0": " ", "\u2009": " ", "\u202f": " ", "。": "", "、": ", ",
}  # fmt: skip
_UNICODE_CHARACTER = re.compile("[" + "".join(_UNICODE) + "]")
_UNICODE_ROOT = re.compile(r"√\s*(?:\(([^()]{1,80})\)|([0-9]{1,30}|[a-z]))")
ROW_END = "¦"  # stands for the `\\` of a matrix, whose second backslash would look like the start of a command
_WORD_SPACE = re.compile(r"[ \t\r\n\f\v]+")

# In this order.
_REWRITES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), becomes)
    for pattern, becomes in [
        (r"\\(?:dfrac|tfrac|cfrac)(?![A-Za-z])", r"\\frac"),
        (r"\\(?:left|right|bigg?[lr]?|Bigg?[lr]?)(?![A-Za-z])\s*\.?", ""),
        (r"\\(?:displaystyle|limits|textstyle)(?![A-Za-z])", ""),
        # The thin or negative space that sets off thousands; a bare comma may separate two numbers.
        (r"(?<=[0-9])(?:,\s*\\!|\{,\}|\\,|,\\,)\s*(?=[0-9]{3}(?![0-9]))", ""),
        (r"\\[!,;:> ]|~|\\(?:quad|qquad|thinspace)(?![A-Za-z])", " "),
        (r"\\(?:leq|leqslant)(?![A-Za-z])", r"\\le"),
        (r"\\(?:geq|geqslant)(?![A-Za-z])", r"\\ge"),
        (r"\\neq(?![A-Za-z])", r"\\ne"),
        (r"\\lbrace(?![A-Za-z])", r"\\{"),
        (r"\\rbrace(?![A-Za-z])", r"\\}"),
        (r"\\(?:textbf|textit|textrm|mathrm|mathbf|mathit|mbox|textnormal|textsf)(?=\s*\{)", r"\\text"),
        (r"\^\s*\{?\s*\\(?:circ|degree)(?![A-Za-z])\s*\}?|\\(?:degree|textdegree)(?![A-Za-z])", "°"),
        (r"\\([%$&#])", r"\1"),
        (r"\\(?:sqrt)\s*([0-9a-z])", r"\\sqrt{\1}"),
        (r"\\frac\s*([0-9a-z])\s*([0-9a-z])", r"\\frac{\1}{\2}"),
        (r"\\frac\s*([0-9a-z])\s*(?=\{)", r"\\frac{\1}"),
        (r"(\\frac\s*\{[^{}]{0,80}\})\s*([0-9a-z])", r"\1{\2}"),
        (r"\\begin\{[bB]matrix\}|\\begin\{matrix\}", r"\\begin{pmatrix}"),
        (r"\\end\{[bB]matrix\}|\\end\{matrix\}", r"\\end{pmatrix}"),
        (r"(?<![A-Za-z\\])(pi|sqrt|sin|cos|tan|cot|sec|csc|log|ln|infty)(?![A-Za-z])", r"\\\1 "),
        (r"\\sqrt\s*\(([^()]{1,80})\)", r"\\sqrt{\1}"),
        (r"(?<=\S)\s*([{}])", r"\1"),
        (r"([{}])\s+(?![A-Za-z])", r"\1"),
    ]
)
# Delimiters of mathematics: \( \) \[ \] and dollars, but not an amount of money.
_DELIMITER = re.compile(r"\\[()\[\]]|\\\$|\$")
_BOXED = re.compile(r"^\\boxed\s*\{(.*)\}$", re.DOTALL)


def _without_delimiters(text: str) -> str:
    """Take dollars away where they come in pairs around mathematics; a lone one is money."""
    pairs = len(re.findall(r"(?<!\\)\$", text)) % 2 == 0

    def keep(found: re.Match[str]) -> str:
        if found[0] == r"\$":
            return found[0]
        return "$" if found[0] == "$" and not pairs else " "

    return _DELIMITER.sub(keep, text)


def clean(text: str) -> str:
    """Bring a LaTeX answer into one spelling.

    Args:
        text: The answer alone, with or without dollar signs or a box around it.

    Returns:
        The same answer without sizes, spaces and synonyms; only stripped when it is longer than `MAX_CHARACTERS`.
    """
    text = text.strip()
    if len(text) > MAX_CHARACTERS:
        return text
    text = _without_delimiters(text.translate(FOLD_ALL).replace("\\\\", ROW_END)).strip()
    while boxed := _BOXED.match(text):
        text = boxed[1].strip()
    text = _UNICODE_ROOT.sub(lambda root: rf"\sqrt{{{root[1] or root[2]}}}", text)
    text = _UNICODE_CHARACTER.sub(lambda found: _UNICODE[found[0]], text)
    for pattern, becomes in _REWRITES:
        text = pattern.sub(becomes, text)
    text = _WORD_SPACE.sub(" ", text).strip()
    while text.endswith((".", ",", ";")) and not text.endswith(r"\,"):
        text = text[:-1].rstrip()
    return text


_OPENING, _CLOSING = frozenset("([{"), frozenset(")]}")


def split(text: str, separators: str = ",") -> list[str] | None:
    r"""Split at separators outside of all brackets; `None` when the brackets do not match up.

    Kinds of brackets are not told apart, because an interval such as `[3, 4)` mixes them.
    """
    parts, depth, start, skip = [], 0, 0, False
    for position, character in enumerate(text):
        if skip:
            skip = False
            # an escaped brace is a bracket as well
            depth += (character == "{") - (character == "}")
        elif character == "\\":
            skip = True
        elif character in _OPENING:
            depth += 1
        elif character in _CLOSING:
            depth -= 1
        elif depth == 0 and character in separators:
            parts.append(text[start:position].strip())
            start = position + 1
        if depth < 0:
            return None
    return [*parts, text[start:].strip()] if depth == 0 else None


def is_one_group(text: str) -> bool:
    """Tell whether a text that starts with a bracket is closed by its very last character: `(1,2)`, not `(a)(b)`."""
    depth, skip = 0, False
    for position, character in enumerate(text):
        if skip:
            skip = False
            depth += (character == "{") - (character == "}")
        elif character == "\\":
            skip = True
            continue
        else:
            depth += (character in _OPENING) - (character in _CLOSING)
        if depth == 0:
            return position == len(text) - 1
    return False
