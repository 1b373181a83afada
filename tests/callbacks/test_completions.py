"""Completions on disk: bounded, spread over the run, and those of training alone."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_ext.callbacks import CompletionsCallback


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_a_group(tmp_path: Path, groups: list[dict[str, Any]], log: Callable[..., None]) -> None:
    path = tmp_path / "completions.jsonl"
    log(CompletionsCallback(path, lambda: groups), 3)
    assert rows(path) == [{"step": 3, "group": i, "groups": 2, **group} for i, group in enumerate(groups)]


def test_what_is_not_of_a_new_generation_is_not_written(
    tmp_path: Path, groups: list[dict[str, Any]], log: Callable[..., None]
) -> None:
    path, newest = tmp_path / "completions.jsonl", [groups]
    callback = CompletionsCallback(path, lambda: newest[0])
    log(callback, 1)
    log(callback, 2)
    log(callback, 2, training=False, train_runtime=1.0)
    log(callback, 2, main=False)
    assert {row["step"] for row in rows(path)} == {1}
    # An evaluation leaves its own rows in the table
    newest[0] = groups[::-1]
    callback.on_evaluate(None, SimpleNamespace(is_world_process_zero=True), None)
    log(callback, 3)
    assert {row["step"] for row in rows(path)} == {1}
    newest[0] = groups[:1]
    log(callback, 4)
    assert {row["step"] for row in rows(path)} == {1, 4}


@settings(max_examples=15)
@given(st.integers(1, 90), st.integers(2000, 20_000), st.integers(1, 5))
def test_the_file_stays_within_its_bound_and_spans_the_run(
    tmp_path_factory: Any, steps: int, limit: int, size: int
) -> None:
    path = tmp_path_factory.mktemp("bound") / "completions.jsonl"
    state = SimpleNamespace(global_step=0, is_world_process_zero=True)

    def newest() -> list[dict[str, Any]]:
        row = {"completion": f"{state.global_step} " * 20, "reward": 1.0, "rewards": {}, "advantage": 0.0}
        return [{"prompt": "p", "completions": [row]}] * size

    callback = CompletionsCallback(path, newest, limit)
    for step in range(1, steps + 1):
        state.global_step = step
        callback.on_log(None, state, None, logs={"reward": 1.0})  # type: ignore[arg-type]
        assert path.stat().st_size <= limit
    kept = list(dict.fromkeys(row["step"] for row in rows(path)))
    assert kept[0] == 1
    gaps = {after - before for before, after in itertools.pairwise(kept)}
    assert len(gaps) <= 1
    # What is dropped next would leave at least as long a gap as that at the end
    assert steps - kept[-1] < 2 * max(gaps or {steps})


def test_a_step_larger_than_its_share_keeps_its_first_groups(tmp_path: Path, log: Callable[..., None]) -> None:
    path = tmp_path / "completions.jsonl"
    row = {"completion": "x" * 300, "reward": 1.0, "rewards": {}, "advantage": 0.0}
    log(CompletionsCallback(path, lambda: [{"prompt": "p", "completions": [row]}] * 40, 16_000), 1)
    found = rows(path)
    assert len(found) == 2 and {line["groups"] for line in found} == {40}


def test_half_a_character_is_kept(tmp_path: Path, log: Callable[..., None]) -> None:
    path = tmp_path / "completions.jsonl"
    row = {"completion": "\ud83d\x00", "reward": 1.0, "rewards": {}, "advantage": 0.0}
    log(CompletionsCallback(path, lambda: [{"prompt": "p", "completions": [row]}]), 1)
    assert rows(path)[0]["completions"][0]["completion"] == "\ud83d\x00"
