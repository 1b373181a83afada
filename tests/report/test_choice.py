"""Completions on the page: spread over the run, within a budget, and readable."""

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_runs import HOSTILE, group

from grpo_ext.report.choice import LONGEST, chosen_completions
from grpo_ext.report.reading import Run


def run(groups: list[dict]) -> Run:
    return Run(name="r", folder=Path(), metrics=[], groups=groups)


def test_everything_where_there_is_room() -> None:
    found = chosen_completions(run([group(step, index) for step in (1, 5) for index in (0, 1)]), 10**6)
    assert found["kept"] == 2
    assert [(one["step"], one["groups"], len(one["rows"])) for one in found["steps"]] == [(1, 2, 2), (5, 2, 2)]
    prompt, rows = found["steps"][0]["rows"][0]
    assert prompt == "1 + 1 = ?"
    assert rows[0] == [1.0, 0.5, {"correct": 1.0, "format": 0.0}, "2"]


@given(st.integers(1, 60), st.integers(1, 6), st.integers(500, 30_000))
def test_within_the_budget_with_the_first_and_the_last_step(steps: int, groups: int, budget: int) -> None:
    kept = [group(step, index, texts=("word " * 20,) * 2) for step in range(steps) for index in range(groups)]
    found = chosen_completions(run(kept), budget)
    shown = [one["step"] for one in found["steps"]]
    assert shown[0] == 0 and shown[-1] == steps - 1 and shown == sorted(set(shown))
    # One group of a step is always there, so two steps are what a budget cannot undercut
    smallest = 2 * len(json.dumps(found["steps"][0]["rows"][0]))
    assert len(json.dumps(found["steps"])) <= max(budget, smallest) * 1.15 + 150 * len(shown)
    gaps = [after - before for before, after in itertools.pairwise(shown)]
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_steps_that_turn_out_large_share_what_is_left() -> None:
    # Every other step, of which none is looked at beforehand, has ten times the groups
    kept = [group(step, index, "word " * 60) for step in range(16) for index in range(1 + 9 * (step % 2))]
    found = chosen_completions(run(kept), 12_000)
    assert len(found["steps"]) == 16
    assert 6_000 < len(json.dumps(found["steps"])) < 14_000


def test_a_step_too_large_keeps_its_first_groups() -> None:
    kept = [group(1, index, prompt=f"{index} " * 400) for index in range(50)]
    (one,) = chosen_completions(run(kept), 5000)["steps"]
    assert 1 <= len(one["rows"]) < 10 and one["groups"] == 50
    assert one["rows"][0][0].startswith("0 0 ")


def test_long_and_hostile_texts_are_cut_and_shown() -> None:
    found = chosen_completions(run([group(1, texts=("x" * (LONGEST + 7), *HOSTILE))]), 10**6)
    texts = [row[3] for row in found["steps"][0]["rows"][0][1]]
    assert texts[0].endswith("\n[7 more characters]")
    assert "a␀b␛[31mc<U+2028>d<U+202E>e<U+FEFF>f<U+009B>g" in texts
    json.dumps(found, ensure_ascii=False).encode()


def test_nothing_kept() -> None:
    assert chosen_completions(run([]), 1000) == {"kept": 0, "steps": []}


@pytest.mark.parametrize("value", [None, "x", float("nan")])
def test_rewards_that_are_no_numbers(value: object) -> None:
    row = group(1)
    row["completions"][0] |= {"reward": value, "advantage": value, "rewards": {"correct": value}}
    row["completions"][1]["rewards"] = None
    rows = chosen_completions(run([row]), 1000)["steps"][0]["rows"][0][1]
    assert rows[0] == [None, None, {"correct": None}, "2"] and rows[1][2] == {}
