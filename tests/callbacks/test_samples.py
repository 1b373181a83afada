"""The table of the best and the worst completion."""

import io
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from grpo_ext.callbacks import SampleCallback
from grpo_ext.callbacks.samples import SHOWN, sample_table


def text_of(step: int, groups: list[dict[str, Any]], width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(sample_table(step, groups))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_group_whose_rewards_differ_most_with_its_ends(groups: list[dict[str, Any]]) -> None:
    shown = text_of(10, groups)
    assert "Step 10, one of 2 groups: 3 completions" in shown and "alive?" in shown and "dead?" not in shown
    best, worst = (line for line in shown.splitlines() if line.split()[:1] in (["best"], ["worst"]))
    assert best.split() == ["best", "1", "1", "0", "0.7", "right"]
    assert worst.split() == ["worst", "0", "0", "0", "-0.7", "wrong"]
    assert "middle" not in shown


def test_a_single_reward_has_no_column_for_its_parts(groups: list[dict[str, Any]]) -> None:
    for group in groups:
        for row in group["completions"]:
            del row["rewards"]["b"]
    (head,) = (line for line in text_of(1, groups).splitlines() if "advantage" in line)
    assert head.split() == ["reward", "advantage", "answered"]


def test_dead_groups_are_called_so(groups: list[dict[str, Any]]) -> None:
    assert "this group teaches nothing" in " ".join(text_of(1, groups[:1]).split())


def test_completions_without_a_reward_are_not_the_worst(groups: list[dict[str, Any]]) -> None:
    unscored = {"completion": "unscored", "reward": None, "rewards": {"a": None, "b": None}, "advantage": 0.0}
    groups[1]["completions"].append(unscored)
    assert "wrong" in text_of(1, groups) and "unscored" not in text_of(1, groups)
    lone = text_of(1, [{"prompt": "p", "completions": [unscored]}])
    assert "none" in lone and "unscored" in lone


def test_a_terminal_obeys_no_completion(groups: list[dict[str, Any]]) -> None:
    groups[1]["completions"][0]["completion"] = "\x1b[2J[bold red]markup[/] " + "x" * 2 * SHOWN
    shown = text_of(1, groups)
    assert "\x1b" not in shown and "␛[2J[bold red]markup[/]" in shown and "…" in shown
    assert shown.count("x") <= SHOWN + 5


def test_a_narrow_terminal(groups: list[dict[str, Any]]) -> None:
    assert all(len(line) <= 60 for line in text_of(1, groups, width=60).splitlines())


@pytest.mark.parametrize(("every", "steps"), [(0, []), (1, [1, 2, 3, 4]), (3, [1, 3]), (10, [1])])
def test_it_is_shown_every_so_many_steps(
    every: int,
    steps: list[int],
    groups: list[dict[str, Any]],
    log: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    callback, found = SampleCallback(every, lambda: groups), []
    for step in (1, 2, 3, 4):
        log(callback, step)
        if f"Step {step}, one of" in capsys.readouterr().out:
            found.append(step)
    assert found == steps


def test_a_step_without_rewards_puts_it_off(
    groups: list[dict[str, Any]], log: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """With `num_iterations` 2 rewards are logged at every other step."""
    callback, found = SampleCallback(10, lambda: groups), []
    for begin, end in ((0, 24), (24, 33)):
        state = SimpleNamespace(global_step=begin)
        callback.on_train_begin(None, state, None)
        for step in range(begin + 1, end + 1):
            log(callback, step, training=step % 2 == 1, loss=0.1)
            if f"Step {step}, one of" in capsys.readouterr().out:
                found.append(step)
    assert found == [1, 11, 21, 31]


def test_it_is_silent_elsewhere(
    groups: list[dict[str, Any]], log: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    log(SampleCallback(1, lambda: groups), 1, main=False)
    log(SampleCallback(1, lambda: groups), 1, training=False, train_runtime=3.0)
    log(SampleCallback(1, lambda: []), 1)
    assert capsys.readouterr().out == ""
