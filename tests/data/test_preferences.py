"""Preference pairs: the built-in ones keep their rule, files of all usual forms load, bad rows are named."""

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_ext.data.preference_rows import as_pairs
from grpo_ext.data.preferences import (
    BRIEF,
    KINDS,
    RULE,
    divided,
    load_preferences,
    polite_and_brief,
    preference_pairs,
    split_values,
)
from grpo_ext.rewards.rows import completion_text


@pytest.mark.parametrize("split", ["train", "test"])
def test_chosen_answers_follow_the_rule_and_rejected_ones_break_one_part(split: str) -> None:
    rows = preference_pairs(split, 300, seed=3)
    assert polite_and_brief(rows["chosen"], rows["answer"]) == [1.0] * 300
    broken = {"rude": {"polite"}, "rambling": {"brief"}, "evasive": {"right"}, "wrong": {"right"}}
    for row in rows:
        text = completion_text(row["rejected"])
        assert {name for name, part in RULE.items() if not part(text, row["answer"])} == broken[row["kind"]], text
    for kind, share in KINDS.items():
        assert rows["kind"].count(kind) / 300 == pytest.approx(share, abs=0.08)


def test_splits_share_no_value() -> None:
    train, test = split_values("train"), split_values("test")
    for slot in train:
        assert train[slot] and len(test[slot]) >= 2 and not set(train[slot]) & set(test[slot]), slot
    words = {
        word.strip(".,?") for row in preference_pairs("train", 500) for word in completion_text(row["prompt"]).split()
    }
    for slot in ("name", "city", "number", "colour"):
        assert not words & set(test[slot]), slot


def test_one_seed_one_set() -> None:
    assert preference_pairs(seed=1)[:] == preference_pairs(seed=1)[:]
    assert preference_pairs(seed=1)[:] != preference_pairs(seed=2)[:]
    plain, talk = preference_pairs(size=20, conversational=False), preference_pairs(size=20)
    assert plain["chosen"][:] == [completion_text(row) for row in talk["chosen"]]
    assert plain["prompt"][:] == [completion_text(row) for row in talk["prompt"]]


def test_the_rule_by_hand() -> None:
    good = "It costs 7 cents. Happy to help!"
    cases = {good: 1.0, "It costs 17 cents. Happy to help!": 0.0, "It costs 7 cents.": 0.0, "": 0.0,
             " ".join(["so"] * (BRIEF - 6)) + " " + good: 0.0}  # fmt: skip
    assert polite_and_brief(list(cases), ["7"] * len(cases)) == list(cases.values())


PLAIN = {"prompt": "q", "chosen": "a", "rejected": "b"}
USER, GOOD, BAD = (
    {"role": role, "content": text} for role, text in (("user", "q"), ("assistant", "a"), ("assistant", "b"))
)
TALK = {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}
FORMS = {
    "text": (PLAIN, PLAIN),
    "messages": (TALK, TALK),
    "messages and text": ({"prompt": [USER], "chosen": "a", "rejected": "b"}, TALK),
    "text and messages": ({"prompt": "q", "chosen": [GOOD], "rejected": [BAD]}, TALK),
    "whole conversations": ({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, TALK),
    "whole, and the prompt as text": ({"prompt": "other", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, TALK),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_rows(form: str, tmp_path: Path) -> None:
    row, wanted = FORMS[form]
    file = tmp_path / "pairs.jsonl"
    rows = [json.loads(json.dumps(row).replace('"q"', f'"q{i}"')) for i in range(6)]
    file.write_text("\n".join(json.dumps(row) for row in rows))
    train, test = load_preferences(str(file), test_size=2, seed=0)
    assert (len(train), len(test)) == (4, 2)
    found = sorted(json.dumps(row) for row in [*train, *test])
    assert found == sorted(json.dumps(wanted).replace('"q"', f'"q{i}"') for i in range(6))


LONG = {"chosen": [USER, GOOD, USER, GOOD], "rejected": [USER, GOOD, USER, BAD]}


def test_the_common_beginning_is_the_prompt() -> None:
    (pair,) = as_pairs(Dataset.from_list([LONG]), "x")
    assert (pair["prompt"], pair["chosen"], pair["rejected"]) == ([USER, GOOD, USER], [GOOD], [BAD])


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "number": ({"prompt": "q", "chosen": 3, "rejected": 4}, "row 0: column 'chosen' must hold text or messages"),
    "nothing": ({"prompt": "q", "chosen": "a", "rejected": None}, "row 0: column 'rejected' must hold"),
    "empty": ({"prompt": "q", "chosen": " ", "rejected": "b"}, "row 0: column 'chosen' is empty"),
    "no prompt": ({"chosen": "a", "rejected": "b"}, "row 0: column 'prompt' is missing"),
    "mixed sides": ({"prompt": "q", "chosen": "a", "rejected": [BAD]}, "row 0: column 'chosen' and column 'rejected'"),
    "role": ({"prompt": [{"role": "human", "content": "q"}], "chosen": "a", "rejected": "b"},
             "row 0: column 'prompt', message 0 has the role 'human'"),
    "content": ({"prompt": [USER], "chosen": [{"role": "assistant", "content": None}], "rejected": [BAD]},
                "row 0: column 'chosen', message 0 must have a role and a content"),
    "assistant asks": ({"prompt": [GOOD], "chosen": "a", "rejected": "b"}, "row 0: column 'prompt' must not end"),
    "user answers": ({"prompt": [USER], "chosen": [GOOD, USER], "rejected": [BAD]}, "column 'chosen' must end with"),
    "different beginnings": ({"chosen": [USER, GOOD], "rejected": [{**USER, "content": "z"}, BAD]}, "begin with"),
    "no side": ({"prompt": "q", "chosen": "a"}, "has no column 'rejected'; it has: prompt, chosen"),
    "same": ({"prompt": "q", "chosen": "a", "rejected": "a"}, "has 1 rows and no pair of two different answers"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_bad_rows_are_named(case: str) -> None:
    row, words = BROKEN[case]
    with pytest.raises(ValueError) as caught:
        as_pairs(Dataset.from_list([row]), "pairs.jsonl")
    assert words in str(caught.value) and str(caught.value).count("\n") == 0


def test_the_row_is_counted() -> None:
    rows = [PLAIN, PLAIN, {**PLAIN, "prompt": ""}]
    with pytest.raises(ValueError, match="pairs, row 2: column 'prompt' is empty"):
        as_pairs(Dataset.from_list(rows), "pairs")
    with pytest.raises(ValueError, match="mixes prompts of text and of messages"):
        as_pairs(_Rows([PLAIN, TALK]), "pairs")  # type: ignore[arg-type]


class _Rows(list):
    """Rows whose columns have no one type, which a Dataset cannot hold but a hub's stream can."""

    column_names = ("prompt", "chosen", "rejected")


@settings(max_examples=40)
@given(st.lists(st.integers(0, 6), min_size=8, max_size=40), st.integers(1, 5), st.integers(0, 9))
def test_no_prompt_on_both_sides(prompts: list[int], size: int, seed: int) -> None:
    rows = Dataset.from_list([{"prompt": str(p), "chosen": str(i), "rejected": "-"} for i, p in enumerate(prompts)])
    largest = max(prompts.count(p) for p in prompts)
    if len(prompts) - largest < size + largest:
        return
    train, test = divided(rows, size, seed)
    assert not set(train["prompt"]) & set(test["prompt"])
    assert sorted(map(int, [*train["chosen"], *test["chosen"]])) == list(range(len(prompts)))
    assert size <= len(test) < size + largest


def test_files_that_are_not_there_or_too_small(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist; name a JSON Lines file"):
        load_preferences(str(tmp_path / "none.jsonl"))
    file = tmp_path / "few.jsonl"
    file.write_text(json.dumps(PLAIN))
    with pytest.raises(ValueError, match="1 pairs of 1 prompts, too few to hold out 128"):
        load_preferences(str(file))
    with pytest.raises(ValueError, match="split is 'dev'"):
        preference_pairs("dev")
    with pytest.raises(ValueError, match="size is 0"):
        preference_pairs(size=0)


def test_a_hub_without_network_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match="name a JSON Lines file, or 'builtin'"):
        load_preferences("nobody/no-such-preferences")
