"""Pieces of the reference pages that are written from code: tables, and docstrings taken apart."""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[2] / "docs"
# The parts of a docstring that follow its text
HEADINGS = ("Args:", "Attributes:", "Returns:", "Raises:")
ARXIV = re.compile(r"(?<![\w/.\[-])(\d{4}\.\d{5})(?![\w\]])")


def plain(text: str) -> str:
    """Text that Markdown shows as it is, except what stands in backquotes, with papers' numbers as links."""
    pieces = re.split(r"(`[^`]*`)", " ".join(text.split()))
    for place in range(0, len(pieces), 2):
        escaped = re.sub(r"([*_<\[\]|~])", r"\\\1", pieces[place])
        pieces[place] = ARXIV.sub(r"[\1](https://arxiv.org/abs/\1)", escaped)
    # A table ends a cell at this sign even inside backquotes
    return "".join(pieces).replace("\\|", "|").replace("|", "\\|")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def code(value: object) -> str:
    """A value as a reader would type it."""
    return f"`{value}`" if isinstance(value, str) and value.isprintable() and value else f"`{value!r}`"


@dataclass(frozen=True)
class Described:
    """A docstring: its paragraphs, and its parts by heading as (name, text), the name empty for plain text."""

    paragraphs: list[str]
    parts: dict[str, list[tuple[str, str]]]


def described(thing: Any) -> Described:
    """The docstring of a function, class or module, taken apart."""
    blocks = re.split(rf"^({'|'.join(HEADINGS)})$", inspect.getdoc(thing) or "", flags=re.MULTILINE)
    parts = {}
    for heading, body in zip(blocks[1::2], blocks[2::2], strict=True):
        # A line that is not indented further begins an entry
        entries = re.split(r"\n(?=\S)", textwrap.dedent(body.strip("\n")))
        named = [re.fullmatch(r"(\w+): (.*)", entry, re.DOTALL) for entry in entries]
        parts[heading.rstrip(":")] = [
            (match[1], match[2]) if match and heading != "Returns:" else ("", entry)
            for match, entry in zip(named, entries, strict=True)
        ]
    return Described([part for part in blocks[0].strip().split("\n\n") if part], parts)


def rendered(thing: Any) -> str:
    """The docstring as Markdown."""
    found = described(thing)
    lines = [plain(paragraph) for paragraph in found.paragraphs]
    for heading, entries in found.parts.items():
        items = [f"- {f'`{name}`: ' if name else ''}{plain(text)}" for name, text in entries]
        lines.append("\n".join([f"{heading}:", "", *items]))
    return "\n\n".join(lines) + "\n"


def signature(function: Any) -> str:
    """`def name(argument: type) -> type: ...` as its source has it."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    assert isinstance(node, ast.FunctionDef)
    arguments, given = ast.unparse(node.args), ast.unparse(node.returns) if node.returns else "None"
    if len(f"{node.name}{arguments}{given}") > 90:
        arguments = "\n    " + re.sub(r", (?=\w+: )", ",\n    ", arguments) + ",\n"
    return f"def {node.name}({arguments}) -> {given}: ..."
