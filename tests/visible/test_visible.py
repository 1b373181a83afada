"""Text that nobody obeys."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_ext.visible import visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\n\ttext, 问题, é, 👍🏽", "plain\n\ttext, 问题, é, 👍🏽"),
        ("\x1b[31mred\x07", "␛[31mred␇"),
        ("a\r\nb\rc", "a\nb␍c"),
        ("\x00\x7f\x9b", "␀␡<U+009B>"),
        ("pay \u202e001\u202c", "pay <U+202E>001<U+202C>"),
        ("\u2066x\u2069\ufeff\u2028", "<U+2066>x<U+2069><U+FEFF><U+2028>"),
        ("half \ud83d", "half <U+D83D>"),
    ],
)
def test_examples(text: str, shown: str) -> None:
    assert visible(text) == shown


@given(st.text(st.characters(exclude_categories=())))
def test_no_character_is_left_that_orders_something(text: str) -> None:
    shown = visible(text)
    shown.encode("utf-8")
    assert all(char in "\n\t" or unicodedata.category(char) not in ("Cc", "Cs", "Zl", "Zp") for char in shown)
    assert visible(shown) == shown
