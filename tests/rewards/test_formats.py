"""Answer formats: what is read, what is not, and that writing and reading agree."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_ext.rewards.formats import (
    ANSWER_FORMATS,
    BOXED,
    CHINESE,
    HASH,
    SENTENCE,
    TAGS,
    AnswerFormat,
    answer_format_named,
)

FORMATS = list(ANSWER_FORMATS.values())
# Pieces of the formats themselves, so that random text comes close to what they look for.
PIECES = st.lists(
    st.sampled_from(
        ["####", "#", " ", "\n", "\t", "18", "\\boxed", "\\boxed{", "{", "}", "\\", "<answer>", "</answer>", "<", "é"]
    )
).map("".join)


def test_every_key_is_its_row_s_name() -> None:
    assert {key: row.name for key, row in ANSWER_FORMATS.items()} == {key: key for key in ANSWER_FORMATS}
    assert set(ANSWER_FORMATS) >= {"hash", "boxed", "tags"}


def test_rows_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        HASH.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("row", "text", "answer"),
    [
        (HASH, "9 * 2 = 18\n#### 18", "18"),
        (HASH, "#### 18", "18"),
        (HASH, "  ####18  \nbye", "18"),
        (HASH, "#### 5\nno, wait\n#### 18\r\n", "18"),
        (HASH, "#### 18\n####\n#### \n", "18"),
        (HASH, "#### 7 or 8", "7 or 8"),
        (HASH, "so it is #### 18", None),  # not on its own line
        (HASH, "##### 18", None),
        (HASH, "### 18", None),
        (HASH, "####\n18", None),
        (HASH, "18", None),
        (BOXED, r"so $\boxed{18}$.", "18"),
        (BOXED, r"\boxed{5} no, \boxed{ 18 }", "18"),
        (BOXED, r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (BOXED, r"\boxed {18}", "18"),
        (BOXED, r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (BOXED, r"\boxed{1 \boxed{2}}", r"1 \boxed{2}"),
        (BOXED, r"{ \boxed{18", None),
        (BOXED, r"\boxed{18} and \boxed{19", "18"),
        (BOXED, r"\boxed{1 \boxed{19}", "19"),
        (BOXED, r"} \boxed{18} }", "18"),
        (BOXED, r"\boxed{18} \boxed{ } \boxed{}", "18"),
        (BOXED, r"\\boxed{18}", None),  # a line break and a word
        (BOXED, r"\\\boxed{18}", "18"),
        (BOXED, r"\boxed 18", None),
        (BOXED, r"\fbox{18}", None),
        (TAGS, "<answer>18</answer>", "18"),
        (TAGS, "<answer>5</answer> no <answer>\n18\n</answer> done", "18"),
        (TAGS, "<answer>18</answer><answer> </answer>", "18"),
        (TAGS, "<answer>18</answer> </answer>", "18"),
        (TAGS, "<answer>5 <answer>18</answer>", "18"),
        (TAGS, "<answer>18</answer><answer>19", "18"),
        (TAGS, "</answer>18<answer>", None),
        (TAGS, "<Answer>18</Answer>", None),
        (SENTENCE, "The answer is **18**.", "18"),
        (SENTENCE, "The answer is: **18.**", "18"),
        (SENTENCE, "**Answer**: 18 . ", "18"),
        (SENTENCE, "The **answer** is .5.", ".5"),
        (SENTENCE, "the answer is 5\nThe answer is ...", "5"),
        (SENTENCE, "the answer isn't 18", None),
        (CHINESE, "答案是：18", "18"),
        (CHINESE, "答案是: 18。", "18"),
        (CHINESE, "答案为：18", "18"),
        (CHINESE, "答案应该是18", "18"),
        (CHINESE, "**答案**：18", "18"),
        (CHINESE, "**答案是：** **18** 。", "18"),
        (CHINESE, "答：18元。**", "18元"),
        (CHINESE, "答案18", None),
    ],
)
def test_extract(row: AnswerFormat, text: str, answer: str | None) -> None:
    assert row.extract(text) == answer


@pytest.mark.parametrize("row", FORMATS, ids=lambda row: row.name)
@given(before=st.text(), answer=st.text(min_size=1), after=st.sampled_from(["", "\n", " \n\t", "\nbye"]))
def test_render_gives_back_or_refuses(row: AnswerFormat, before: str, answer: str, after: str) -> None:
    try:
        rendered = row.render(answer)
    except ValueError:
        return
    # An odd backslash at the end of the text before would make another command of the box.
    assert row.extract(f"{before.rstrip(chr(92))}\n{rendered}{after}") == answer.strip()


@pytest.mark.parametrize("row", FORMATS, ids=lambda row: row.name)
@given(number=st.integers())
def test_numbers_can_be_written_in_every_format(row: AnswerFormat, number: int) -> None:
    assert row.extract(row.render(str(number))) == str(number)
    assert str(number) not in row.instruction.split()


@pytest.mark.parametrize(
    ("row", "answer"),
    [(HASH, "1\n2"), (HASH, " "), (BOXED, "}{"), (BOXED, "{"), (BOXED, "1\\"), (TAGS, "</answer>"), (TAGS, "")],
)
def test_render_refuses_what_cannot_be_read_back(row: AnswerFormat, answer: str) -> None:
    with pytest.raises(ValueError, match=row.name):
        row.render(answer)


@pytest.mark.parametrize("row", FORMATS, ids=lambda row: row.name)
@given(text=st.one_of(st.text(), PIECES))
def test_the_span_is_where_the_answer_is(row: AnswerFormat, text: str) -> None:
    span = row.locate(text)
    assert row.extract(text) == (None if span is None else span.answer)
    if span is not None:
        assert span.answer == span.answer.strip() != ""
        written = text[span.start : span.end]
        assert written.strip().startswith(row.opening.strip("{ ")) and written.endswith(row.closing)
        assert row.extract(written) == span.answer


def test_an_unknown_format_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'xml'.*hash, boxed, tags"):
        answer_format_named("xml")
    assert answer_format_named("boxed") is BOXED
