"""Merging rounds, spread, shares and the stream of prompts, against naive references."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grpo_ext.rollouts.resampling import (
    PromptStream,
    groups_to_draw,
    has_spread,
    merged,
    shares,
    split_rows,
    tokens,
)

PAD = 7
NAN = float("nan")

# A completion token's value in each tensor with a column a token
PER_TOKEN = {
    "old_per_token_logps": -0.1,
    "ref_per_token_logps": -0.2,
    "sampling_per_token_logps": -0.3,
    "importance_sampling_ratio": 1.5,
}
FILLERS = {"completion_ids": PAD, "tool_mask": 1, "importance_sampling_ratio": 1.0}


@st.composite
def rounds(draw: st.DrawFn) -> list[list[dict[str, Any]]]:
    """Rounds of rows, each row as plain lists without padding."""
    length = st.integers(1, 5)
    return [
        [
            {"prompt": draw(length), "completion": draw(st.integers(0, 5)), "id": 10 * place + i}
            for i in range(draw(length))
        ]
        for place in range(draw(st.integers(1, 4)))
    ]


def padded(rows: list[dict[str, Any]], sequence_ratio: bool, token_advantages: bool) -> dict[str, Any]:
    """TRL's dict of some rows, written cell by cell."""
    width = max(row["prompt"] for row in rows), max(row["completion"] for row in rows)
    values: dict[str, list[Any]] = {name: [] for name in ("prompt_ids", "prompt_mask", "completion_ids", "advantages")}
    values |= {name: [] for name in ("completion_mask", "tool_mask", *PER_TOKEN, "group_ids", "names")}
    for row in rows:
        left, length, key = width[0] - row["prompt"], row["completion"], row["id"]
        values["prompt_ids"].append([PAD] * left + [100 + key + i for i in range(row["prompt"])])
        values["prompt_mask"].append([0] * left + [1] * row["prompt"])
        cells = {"completion_ids": [200 + key + i for i in range(length)], "completion_mask": [1] * length}
        cells |= {"tool_mask": [(key + i) % 2 for i in range(length)]}
        cells |= {name: [value * (key + i + 1) for i in range(length)] for name, value in PER_TOKEN.items()}
        cells |= {"advantages": [0.5 * key + i for i in range(length)]}
        for name, cell in cells.items():
            values[name].append(cell + [FILLERS.get(name, 0)] * (width[1] - length))
        values["group_ids"].append(key // 2)
        values["names"].append(f"row {key}")
    if sequence_ratio:
        values["importance_sampling_ratio"] = [[float(row["id"])] for row in rows]
    if not token_advantages:
        values["advantages"] = [float(row["id"]) for row in rows]
    floats = {"advantages", *PER_TOKEN}
    result = {
        name: value if name == "names" else torch.tensor(value, dtype=torch.float32 if name in floats else torch.long)
        for name, value in values.items()
    }
    return {**result, "num_items_in_batch": (result["completion_mask"] * result["tool_mask"]).sum()}


@given(rounds(), st.booleans(), st.booleans())
def test_merging_equals_padding_all_rows_at_once(
    drawn: list[list[dict[str, Any]]], sequence_ratio: bool, token_advantages: bool
) -> None:
    found = merged([padded(rows, sequence_ratio, token_advantages) for rows in drawn], PAD)
    wanted = padded([row for rows in drawn for row in rows], sequence_ratio, token_advantages)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(found[name], value) if isinstance(value, torch.Tensor) else found[name] == value, name
    assert next(iter(found)) == "prompt_ids"


@given(rounds())
def test_splitting_and_merging_gives_the_rows_back(drawn: list[list[dict[str, Any]]]) -> None:
    rows = padded([row for part in drawn for row in part], True, False)
    parts = split_rows(rows, [len(part) for part in drawn])
    assert [part["names"] for part in parts] == [[f"row {row['id']}" for row in part] for part in drawn]
    again = merged(parts, PAD)
    assert all(torch.equal(again[name], value) for name, value in rows.items() if isinstance(value, torch.Tensor))


def test_what_cannot_be_merged_is_named() -> None:
    one = padded([{"prompt": 2, "completion": 3, "id": 0}], True, False)
    other = padded([{"prompt": 2, "completion": 5, "id": 1}], True, False)
    with pytest.raises(ValueError, match=r"`odd` is in one round"):
        merged([one, {**other, "odd": torch.zeros(1)}], PAD)
    with pytest.raises(ValueError, match=r"`odd` is in one round"):
        merged([{**one, "odd": torch.zeros(1)}, other], PAD)
    with pytest.raises(ValueError, match=r"`odd` has widths \[4, 6\] in rounds of \[3, 5\] tokens"):
        merged([{**one, "odd": torch.zeros(1, 4)}, {**other, "odd": torch.zeros(1, 6)}], PAD)
    with pytest.raises(ValueError, match=r"`pixels` of a generation has 3 rows where 1 completions"):
        split_rows({**one, "pixels": torch.zeros(3, 2)}, [1])


def test_tokens_count_completions_that_are_masked_as_a_whole() -> None:
    rows = {
        "prompt_mask": torch.tensor([[0, 1, 1], [1, 1, 1]]),
        "completion_ids": torch.tensor([[5, 1, PAD, PAD], [5, 6, 8, PAD]]),
        "completion_mask": torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0]]),
    }
    assert tokens(rows, PAD) == 2 + 2 + 3 + 3


@pytest.mark.parametrize(
    ("rewards", "counts", "alive"),
    [
        ([0.3, 0.3, 0.3], [True] * 3, False),
        ([0.3, 0.3, 0.4], [True] * 3, True),
        ([NAN, NAN, NAN], [True] * 3, False),
        ([NAN, 1.0, NAN], [True] * 3, False),
        ([NAN, 1.0, 0.0], [True] * 3, True),
        ([0.0, 1.0, 0.0], [False] * 3, False),
        ([0.0, 1.0, 0.0], [False, False, True], True),
        ([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], [True] * 3, True),
        ([[1.0, NAN], [1.0, NAN], [1.0, 2.0]], [True] * 3, False),
    ],
)
def test_spread(rewards: list[Any], counts: list[bool], alive: bool) -> None:
    others = torch.tensor([0.0, 1.0] if not isinstance(rewards[0], list) else [[0.0, 0.0], [1.0, 0.0]])
    everyone = torch.cat([torch.tensor(rewards), others])
    groups = torch.tensor([1, 1, 1, 0, 0])
    assert has_spread(everyone, groups, torch.tensor([*counts, True, True])).tolist() == [True, alive]


@given(st.integers(0, 200), st.lists(st.booleans(), min_size=1, max_size=20))
def test_shares_are_even_and_spend_the_budget(budget: int, wanted: list[bool]) -> None:
    given_rows = shares(budget, wanted)
    takers = [rows for rows, wants in zip(given_rows, wanted, strict=True) if wants] or given_rows
    assert sum(given_rows) == sum(takers) == budget
    assert max(takers) - min(takers) <= 1


def test_shares_by_hand() -> None:
    assert shares(7, [True, False, True, True]) == [3, 0, 2, 2]
    assert shares(5, [False, False, False]) == [2, 2, 1]


@pytest.mark.parametrize(
    ("missing", "live", "seen", "most", "count"),
    [(3, 8, 8, 8, 3), (2, 3, 7, 8, 4), (2, 0, 8, 8, 8), (1, 1, 2, 8, 2), (5, 8, 8, 4, 4)],
)
def test_groups_to_draw(missing: int, live: int, seen: int, most: int, count: int) -> None:
    assert groups_to_draw(missing, live, seen, most) == count


@given(st.integers(1, 12), st.lists(st.integers(0, 9), max_size=12), st.integers(0, 3))
def test_no_prompt_comes_again_before_all_have_come(rows: int, counts: list[int], seed: int) -> None:
    state = torch.get_rng_state()
    stream, again = PromptStream(rows, seed), PromptStream(rows, seed)
    taken = [index for count in counts for index in stream.take(count)]
    for start in range(0, len(taken), rows):
        part = taken[start : start + rows]
        assert len(set(part)) == len(part) and set(part) <= set(range(rows))
    assert taken == again.take(len(taken))
    assert torch.equal(state, torch.get_rng_state())


def test_each_pass_has_an_order_of_its_own() -> None:
    stream = PromptStream(50, 0)
    first, second = stream.take(50), stream.take(50)
    assert first != sorted(first) and first != second and sorted(first) == sorted(second) == list(range(50))
    assert first != PromptStream(50, 1).take(50)
