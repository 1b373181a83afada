"""Answer formats: how a prompt asks for the final answer, and how that answer is written and read back.

Data and rewards share the rows of `ANSWER_FORMATS`, so the format that a prompt asks for is the one that is checked.
"""

import functools
import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple


class AnswerSpan(NamedTuple):
    """One formatted answer inside a text: `text[start:end]` is the whole of it, markers included."""

    start: int
    end: int
    answer: str


@dataclass(frozen=True)
class AnswerFormat:
    """A way to mark the final answer of a completion.

    Args:
        name: Key of the row in `ANSWER_FORMATS`, and the value of the dataset column `answer_format`.
        instruction: Sentence that goes into the prompt and asks for this format.
        opening: Marker written before the answer.
        closing: Marker written after the answer.
        locate: Finds the last well-formed occurrence in a text, in linear time, or returns `None`.
    """

    name: str
    instruction: str
    opening: str
    closing: str
    locate: Callable[[str], AnswerSpan | None]

    def extract(self, text: str) -> str | None:
        """Return the answer of the last well-formed occurrence in `text`, or `None`: the strict reader."""
        span = self.locate(text)
        return None if span is None else span.answer

    def render(self, answer: str) -> str:
        """Write `answer` in this format.

        Raises:
            ValueError: `extract` would not give the answer back, for example a line break in the "hash" format.
        """
        text = f"{self.opening}{answer}{self.closing}"
        if self.extract(text) != answer.strip():
            raise ValueError(f"answer {answer!r} cannot be written in the answer format {self.name!r} and read back.")
        return text


_HASH_LINE = re.compile(r"^[ \t]*####(?!#)[ \t]*(\S[^\n]*)$", re.MULTILINE)
_TAG = re.compile(r"</?answer>")
# An escape such as `\{` or `\\` is one token, so that it neither opens a group nor hides a real brace.
_BRACE = re.compile(r"\\boxed[ \t]*\{|\\[\s\S]|[{}]")
_VISIBLE = re.compile(r"\S")


def _locate_hash(text: str) -> AnswerSpan | None:
    """Find the last line that starts with exactly four hashes and holds something after them."""
    lines = deque(_HASH_LINE.finditer(text), maxlen=1)
    return AnswerSpan(lines[0].start(), lines[0].end(), lines[0][1].strip()) if lines else None


def _locate_tags(text: str) -> AnswerSpan | None:
    """Find the last `<answer>` ... `</answer>` pair that has no other tag and something visible inside."""
    span, opened = None, None
    for tag in _TAG.finditer(text):
        if tag[0] == "<answer>":
            opened = tag
        elif opened is not None:
            visible = _VISIBLE.search(text, opened.end(), tag.start())
            span = (opened, tag) if visible else span
            opened = None
    if span is None:
        return None
    return AnswerSpan(span[0].start(), span[1].end(), text[span[0].end() : span[1].start()].strip())


def _locate_boxed(text: str) -> AnswerSpan | None:
    r"""Find the `\boxed{...}` with balanced braces, not empty, whose closing brace comes last."""
    first = text.find("\\boxed")
    if first < 0:
        return None
    # A backslash before the first box may be the second half of a line break, so tokens start at the run's beginning.
    while first > 0 and text[first - 1] == "\\":
        first -= 1
    last: tuple[int, int, int] | None = None
    groups: list[tuple[int, int] | None] = []  # one entry per open brace; None for a brace that is not a box
    for token in _BRACE.finditer(text, first):
        match token[0]:
            case "{":
                groups.append(None)
            case "}":
                box = groups.pop() if groups else None
                if box is not None and _VISIBLE.search(text, box[1], token.start()):
                    last = (*box, token.start())
            case opening if opening.endswith("{") and len(opening) > 2:
                groups.append(token.span())
    if last is None:
        return None
    start, inside, end = last
    return AnswerSpan(start, end + 1, text[inside:end].strip())


# To the end of the line, because the sentence may go on in mathematics. Any part of it may be bold.
_SENTENCE = re.compile(r"\b[Aa]nswer(?:[ \t*]+is(?![A-Za-z])[ \t*]*:?|[ \t*]*:)[ \t*]*([^\n]*)")
_CHINESE = re.compile(r"答案?[ \t*]*(?:应该?[ \t*]*)?(?:[是为][ \t*]*[:：]?|[:：])[ \t*]*([^\n]*)")
_DRESSING = " \t\r\u00a0\u3000*"


def _locate_sentence(pattern: re.Pattern[str], stops: str, text: str) -> AnswerSpan | None:
    """Find the last line part after a phrase that announces the answer, if it holds something but full stops."""
    last = None
    for found in pattern.finditer(text):
        if answer := found[1].rstrip(_DRESSING + stops).strip():
            last = AnswerSpan(found.start(), found.end(), answer)
    return last


HASH = AnswerFormat(
    name="hash",
    instruction='End with a last line that holds "#### " followed by the final answer and nothing else.',
    opening="#### ",
    closing="",
    locate=_locate_hash,
)
BOXED = AnswerFormat(
    name="boxed",
    instruction=r"End with the final answer inside \boxed{} and write nothing after it.",
    opening="\\boxed{",
    closing="}",
    locate=_locate_boxed,
)
TAGS = AnswerFormat(
    name="tags",
    instruction="End with the final answer between <answer> and </answer> and write nothing after it.",
    opening="<answer>",
    closing="</answer>",
    locate=_locate_tags,
)
SENTENCE = AnswerFormat(
    name="sentence",
    instruction='End with the sentence "The answer is ..." and write nothing after it.',
    opening="The answer is ",
    closing=".",
    locate=functools.partial(_locate_sentence, _SENTENCE, "."),
)
CHINESE = AnswerFormat(
    name="chinese",
    instruction="最后一行只写“答案是”和最终答案。",
    opening="答案是",
    closing="。",
    locate=functools.partial(_locate_sentence, _CHINESE, "。."),
)

ANSWER_FORMATS: dict[str, AnswerFormat] = {
    "hash": HASH,
    "boxed": BOXED,
    "tags": TAGS,
    "sentence": SENTENCE,
    "chinese": CHINESE,
}


def answer_format_named(name: str) -> AnswerFormat:
    """Return the row of `ANSWER_FORMATS` called `name`.

    Raises:
        ValueError: There is no such row.
    """
    if name not in ANSWER_FORMATS:
        raise ValueError(f"answer_format is {name!r}; choose one of {', '.join(ANSWER_FORMATS)}.")
    return ANSWER_FORMATS[name]
