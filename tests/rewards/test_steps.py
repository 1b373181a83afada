"""Where steps end: in the text, and at which token, with tokens that hold several characters or less than one."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from grpo_ext.models import tiny_tokenizer
from grpo_ext.rewards.steps import Step, split_steps, step_ends, token_ends

END = 1


def byte_tokenizer(*merged: str) -> PreTrainedTokenizerFast:
    """One token a byte, and one for each of some longer texts, spelled in the byte alphabet of GPT-2."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = ["<pad>", "<eos>", *alphabet]
    merges = []
    for text in merged:
        spelled = "".join(
            letter for letter, _ in pre_tokenizers.ByteLevel(False, use_regex=False).pre_tokenize_str(text)
        )
        for length in range(2, len(spelled) + 1):
            if spelled[:length] not in names:
                merges.append((spelled[: length - 1], spelled[length - 1]))
                names.append(spelled[:length])
    core = Tokenizer(BPE({name: i for i, name in enumerate(names)}, merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>")


BYTES = byte_tokenizer("7\n#", ".\n\n", "\nb", "ab")


def ids_of(text: str, tokenizer: PreTrainedTokenizerFast = BYTES, end: bool = True) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"] + ([END] if end else [])


def steps_of(text: str, end: bool = True, tokenizer: PreTrainedTokenizerFast = BYTES) -> list[tuple[str, int]]:
    found = split_steps(ids_of(text, tokenizer, end), tokenizer, "\n", {END})
    return [(step.text, step.token) for step in found]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" \n\n ", []),
        ("one", [3]),
        ("one\n", [4]),
        ("one\ntwo", [4, 7]),
        ("one\n\n\ntwo\n \n", [4, 12]),
        ("\n\none\ntwo", [6, 9]),
        ("one\n ", [5]),
    ],
)
def test_ends_in_the_text(text: str, expected: list[int]) -> None:
    assert step_ends(text) == expected


def test_other_separators() -> None:
    assert step_ends("a\nb\n\nc", "\n\n") == [5, 6]
    assert step_ends("a. b. c", ". ") == [3, 6, 7]
    assert step_ends("aaaa", "aa") == [2, 4]
    assert step_ends("abcdef", lambda text: range(2, len(text), 2)) == [2, 4, 6]
    assert step_ends("ab  ef", lambda text: [2, 4]) == [2, 6]
    with pytest.raises(ValueError, match="separator of steps is empty"):
        step_ends("a", "")
    for offsets in ([0], [2, 2], [7], [3, 2]):
        with pytest.raises(ValueError, match="must ascend from 1 to 6"):
            step_ends("abcdef", lambda text, offsets=offsets: offsets)


def test_one_character_a_token() -> None:
    tokenizer = tiny_tokenizer()
    assert steps_of("3+4=7\n#### 7", tokenizer=tokenizer) == [("3+4=7", 5), ("#### 7", 12)]
    # The last step of a finished completion reaches to its end token, also past its newline
    assert steps_of("3+4=7\n#### 7\n", tokenizer=tokenizer) == [("3+4=7", 5), ("#### 7", 13)]


def test_a_token_with_a_newline_and_what_follows_ends_the_step() -> None:
    tokens = [BYTES.decode([token]) for token in ids_of("4=7\n#### 7", end=False)]
    assert tokens[:4] == ["4", "=", "7\n#", "#"]
    assert steps_of("4=7\n#### 7") == [("4=7", 2), ("#### 7", 8)]
    assert [BYTES.decode([token]) for token in ids_of("x.\n\ny", end=False)] == ["x", ".\n\n", "y"]
    assert steps_of("x.\n\ny") == [("x.", 1), ("y", 3)]
    # Two steps that end in one token: nothing but a newline and a letter in it
    assert steps_of("a\nb\nc")[:2] == [("a", 1), ("b", 2)]


def test_characters_of_several_tokens() -> None:
    text = "é=é\n€5 × 2 = €10\n答 7"
    ids = ids_of(text)
    assert len(ids) > len(text) + 1
    found = split_steps(ids, BYTES, "\n", {END})
    assert [step.text for step in found] == ["é=é", "€5 × 2 = €10", "答 7"]
    assert [step.token for step in found] == [5, 5 + len("€5 × 2 = €10\n".encode()), len(ids) - 1]


def test_a_cut_off_completion_has_no_last_step() -> None:
    assert steps_of("one\ntw", end=False) == [("one", 3)]
    assert steps_of("tw", end=False) == []
    # What was closed before the limit is whole
    assert steps_of("one\ntwo\n", end=False) == [("one", 3), ("two", 7)]
    found = split_steps(ids_of("one\ntwo\n", end=False), BYTES, "\n", {END})
    assert not any(step.is_last for step in found)
    assert [step.is_last for step in split_steps(ids_of("one\ntwo"), BYTES, "\n", {END})] == [False, True]


def test_without_ends_every_completion_is_finished() -> None:
    assert [step.token for step in split_steps(ids_of("one\ntw", end=False), BYTES)] == [3, 5]


def test_empty_completions() -> None:
    for ids in ([], [END], ids_of("\n \n")):
        assert split_steps(ids, BYTES, "\n", {END}) == []


def test_no_newline_is_one_step() -> None:
    assert steps_of("3 + 4 = 7") == [("3 + 4 = 7", 9)]


@pytest.mark.parametrize(
    ("text", "is_answer"),
    [("#### 7", True), (r"So \boxed{7}", True), ("<answer>7</answer>", True), ("3 + 4 = 7", False), ("####", False)],
)
def test_answer_steps(text: str, is_answer: bool) -> None:
    assert Step(text, 0, 1, 0).is_answer == is_answer


texts = st.text(alphabet="ab7\n#. é€答", max_size=24)


@settings(max_examples=200, deadline=None)
@given(texts, st.booleans())
def test_token_ends_are_exact(text: str, end: bool) -> None:
    """A step's tokens reach its end and without the last of them they do not."""
    ids = ids_of(text, end=end)
    found = split_steps(ids, BYTES, "\n", {END})
    assert "".join(text[step.start : step.end] for step in found) == text[: found[-1].end if found else 0]
    assert [step.text for step in found] == [line.strip() for line in text.split("\n") if line.strip()][: len(found)]
    for step in found:
        if step.is_last:
            assert step.token == len(ids) - 1
            continue
        assert BYTES.decode(ids[: step.token + 1], skip_special_tokens=True).startswith(text[: step.end])
        assert not BYTES.decode(ids[: step.token], skip_special_tokens=True).startswith(text[: step.end])


@settings(max_examples=100, deadline=None)
@given(texts)
def test_both_ways_of_counting_agree(text: str) -> None:
    """The fast way for texts whose tokens are whole characters, the other for all."""
    ids = ids_of(text, end=False)
    for offset in range(1, len(text) + 1):
        (found,) = token_ends(ids, BYTES, text, [offset])
        reached = [place for place in range(len(ids)) if BYTES.decode(ids[: place + 1]).startswith(text[:offset])]
        assert found == reached[0]
