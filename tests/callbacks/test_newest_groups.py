"""Rows of TRL's table of completions as groups."""

import itertools
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_ext.groups import grouped, readable

NAN = math.nan


def test_rows_with_one_prompt_are_a_group_best_first() -> None:
    found = grouped(
        ["p", "p", "q", "q"], ["a", "b", "c", "d"], {"x": [0.0, 1.0, NAN, 1.0], "y": [1.0, 0.0, None, NAN]},
        [1.0, 0.5], [-1.0, 1.0, 0.0, 0.0],
    )  # fmt: skip
    assert [(group["prompt"], [row["completion"] for row in group["completions"]]) for group in found] == [
        ("p", ["b", "a"]),
        ("q", ["d", "c"]),
    ]
    best, worst = found[0]["completions"]
    assert best == {"completion": "b", "reward": 1.0, "rewards": {"x": 1.0, "y": 0.0}, "advantage": 1.0}
    assert worst["reward"] == 0.5
    assert [row["reward"] for row in found[1]["completions"]] == [1.0, None]
    assert found[1]["completions"][1]["rewards"] == {"x": None, "y": None}


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(-2, 2)), max_size=40))
def test_no_row_is_lost(rows: list[tuple[int, float]]) -> None:
    prompts, rewards = [str(prompt) for prompt, _ in rows], [reward for _, reward in rows]
    texts = [str(index) for index in range(len(rows))]
    found = grouped(prompts, texts, {"x": rewards}, [2.0], rewards)
    kept = [(group["prompt"], row["completion"]) for group in found for row in group["completions"]]
    assert sorted(kept) == sorted(zip(prompts, texts, strict=True))
    for group in found:
        values = [row["reward"] for row in group["completions"]]
        assert values == sorted(values, reverse=True)
    assert all(one["prompt"] != other["prompt"] for one, other in itertools.pairwise(found))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain", "plain"),
        ([], ""),
        ([{"role": "user", "content": "one"}], "one"),
        ([{"role": "system", "content": "be"}, {"role": "user", "content": "two"}], "system: be\n\nuser: two"),
        ([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]}], "[image]\nwhat?"),
        (
            [{"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add"}}]}],
            "[call {'name': 'add'}]",
        ),
    ],
)
def test_messages_become_text(value: Any, text: str) -> None:
    assert readable(value) == text
