"""The questions of the built-in arithmetic: people, things, templates, and the numbers each may be asked with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

NAMES = (
    "Ada", "Ben", "Chloe", "Diego", "Emma", "Farid", "Grace", "Hugo", "Ines", "Jamal",
    "Kira", "Liam", "Mei", "Noah", "Olga", "Priya", "Quinn", "Rosa", "Samir", "Tara",
)  # fmt: skip
ITEMS = (
    "apples", "books", "buttons", "candles", "coins", "cookies", "eggs", "flowers", "marbles", "pencils",
    "postcards", "shells", "stamps", "stickers", "tickets", "toys",
)  # fmt: skip

Numbers = tuple[int, ...]
Step = tuple[str, str, str]


@dataclass(frozen=True)
class Template:
    """One way to ask a question: its text, the numbers it may be asked with, and the steps that solve it.

    Args:
        kind: the operations used, for example `"multiply_add"`; several templates may share a kind.
        text: the question, with the fields `{name}`, `{other}`, `{items}` and the numbers `{a}`, `{b}`, `{c}`
            in this order.
        steps: one `(left, operation, right)` per step; `x` stands for the result of the step before.
        numbers: lists every admissible tuple of numbers.
    """

    kind: str
    text: str
    steps: tuple[Step, ...]
    numbers: Callable[[], list[Numbers]]

    @property
    def difficulty(self) -> str:
        """`"one_step"` or `"two_step"`."""
        return "one_step" if len(self.steps) == 1 else "two_step"


# The ranges are those of mental arithmetic, which a model of a hundred million weights can learn to do.
def _sums() -> list[Numbers]:
    return [(a, b) for a in range(2, 31) for b in range(2, 21)]


def _differences() -> list[Numbers]:
    return [(a, b) for a in range(5, 41) for b in range(2, min(a - 1, 21))]


def _products() -> list[Numbers]:
    return [(a, b) for a in range(2, 13) for b in range(2, 13)]


def _quotients() -> list[Numbers]:
    return [(quotient * b, b) for b in range(2, 13) for quotient in range(2, 13)]


def _sum_then_less() -> list[Numbers]:
    return [(a, b, c) for a in range(3, 31) for b in range(2, 13) for c in range(2, min(a + b - 1, 13))]


def _difference_then_more() -> list[Numbers]:
    return [(a, b, c) for a in range(6, 31) for b in range(2, min(a - 1, 13)) for c in range(2, 13)]


def _product_then_more() -> list[Numbers]:
    return [(a, b, c) for a in range(2, 11) for b in range(2, 11) for c in range(2, 13)]


def _product_then_less() -> list[Numbers]:
    return [(a, b, c) for a in range(2, 11) for b in range(2, 11) for c in range(2, min(a * b - 1, 13))]


def _sum_then_share() -> list[Numbers]:
    return [(a, b, c) for a in range(2, 31) for b in range(2, 21) for c in range(2, 10) if (a + b) % c == 0]


def _quotient_then_more() -> list[Numbers]:
    return [(quotient * b, b, c) for b in range(2, 11) for quotient in range(2, 11) for c in range(2, 13)]


_ADD = (("a", "+", "b"),)
_SUBTRACT = (("a", "-", "b"),)
_MULTIPLY = (("a", "*", "b"),)
_SHARE = (("a", "/", "b"),)

TEMPLATES: tuple[Template, ...] = (
    Template(
        "add", "{name} has {a} {items}. {other} gives {name} {b} more. How many {items} does {name} have now?",
        _ADD, _sums,
    ),
    Template(
        "add", "{name} counts {a} {items} in the morning and {b} {items} in the evening. "
        "How many {items} does {name} count in the whole day?",
        _ADD, _sums,
    ),
    Template(
        "add", "There are {a} {items} on the table and {b} {items} in the box. How many {items} are there together?",
        _ADD, _sums,
    ),
    Template(
        "subtract", "{name} has {a} {items} and gives {b} of them to {other}. How many {items} does {name} have left?",
        _SUBTRACT, _differences,
    ),
    Template(
        "subtract", "A shop has {a} {items}. By noon {b} of them are sold. How many {items} are left in the shop?",
        _SUBTRACT, _differences,
    ),
    Template(
        "subtract", "{name} has {a} {items} and {other} has {b}. How many more {items} does {name} have than {other}?",
        _SUBTRACT, _differences,
    ),
    Template(
        "multiply", "{name} has {a} boxes with {b} {items} in each box. How many {items} does {name} have in total?",
        _MULTIPLY, _products,
    ),
    Template(
        "multiply", "{name} buys {a} bags. Every bag holds {b} {items}. How many {items} does {name} buy?",
        _MULTIPLY, _products,
    ),
    Template(
        "share", "{name} shares {a} {items} equally among {b} friends. How many {items} does each friend get?",
        _SHARE, _quotients,
    ),
    Template(
        "share", "{name} packs {a} {items} into bags of {b}. How many bags does {name} fill?",
        _SHARE, _quotients,
    ),
    Template(
        "add_subtract", "{name} has {a} {items}, finds {b} more and then gives {c} to {other}. "
        "How many {items} does {name} have now?",
        (("a", "+", "b"), ("x", "-", "c")), _sum_then_less,
    ),
    Template(
        "subtract_add", "{name} has {a} {items}. {name} loses {b} of them and then buys {c} new ones. "
        "How many {items} does {name} have now?",
        (("a", "-", "b"), ("x", "+", "c")), _difference_then_more,
    ),
    Template(
        "multiply_add", "{name} has {a} boxes with {b} {items} in each box and {c} more {items} on a shelf. "
        "How many {items} does {name} have in total?",
        (("a", "*", "b"), ("x", "+", "c")), _product_then_more,
    ),
    Template(
        "multiply_subtract", "{name} buys {a} bags with {b} {items} each and gives {c} {items} to {other}. "
        "How many {items} does {name} keep?",
        (("a", "*", "b"), ("x", "-", "c")), _product_then_less,
    ),
    Template(
        "add_share", "{name} has {a} {items} and {other} has {b}. They put them together and share them equally "
        "among {c} children. How many {items} does each child get?",
        (("a", "+", "b"), ("x", "/", "c")), _sum_then_share,
    ),
    Template(
        "share_add", "{name} shares {a} {items} equally among {b} friends. {other} is one of the friends and "
        "already has {c} {items}. How many {items} does {other} have now?",
        (("a", "/", "b"), ("x", "+", "c")), _quotient_then_more,
    ),
)  # fmt: skip
