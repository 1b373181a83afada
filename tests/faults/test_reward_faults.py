"""Reward functions, reward models and reward servers that fail in a run."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fault_runs import Watched, assert_same, failing, resumed, stopped
from reward_server import serving
from table import Row, by_its_rows
from tiny_runs import QUIET, early_letters, make, weights
from transformers import LlamaConfig, LlamaForSequenceClassification
from trl import GRPOTrainer

from grpo_ext import GRPOExtConfig
from grpo_ext.faults import RunStopped
from grpo_ext.models import tiny_tokenizer
from grpo_ext.rewards import guard, judge_reward
from grpo_ext.rewards.guard import Patience
from grpo_ext.trainer.guarded import UNSCORABLE

NAN, INF = float("nan"), float("inf")
# Ends calls that hang
RELEASE = threading.Event()


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Pauses that take no time, and an end for calls that hang."""
    monkeypatch.setattr(guard, "PAUSE", 0.0)
    RELEASE.clear()
    yield
    RELEASE.set()


def raises(completions: list[Any]) -> Any:
    raise ConnectionError("the server is away")


def hangs(completions: list[Any]) -> list[float]:
    RELEASE.wait(60)
    return [0.0] * len(completions)


# What stops a run: at the second of two steps, so that the first is complete

STOPS: dict[str, tuple[Callable[[list[Any]], Any], dict[str, Any], str]] = {
    "raises": (raises, {}, r"'early_letters' raised ConnectionError \(the server is away\) at test_reward_faults"),
    "hangs": (hangs, {"reward_timeout": 0.5}, "'early_letters' gave no rewards within `reward_timeout` 0.5 s; mend"),
    "length": (lambda rows: [1.0] * (len(rows) - 1), {}, r"returned 7 rewards for 8 completions \(row 7 is the first"),
    "type": (lambda rows: "1.0", {}, r"returned '1.0' \(str\) instead of a list"),
    "shape": (lambda rows: torch.ones(len(rows), 1), {}, r"returned an array of shape \(8, 1\), not \(8,\)"),
    "no number": (lambda rows: ["right"] * len(rows), {}, r"returned 'right' \(str\) for row 0"),
    "too many": (
        lambda rows: [NAN] * 4 + [None] + [1.0] * 3,
        {},
        "No reward function scored 5 of the 8 completions of a generation, more than `max_unscorable` 0.5; look at "
        "'early_letters', or raise it",
    ),
}


@pytest.fixture(scope="module")
def whole(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> GRPOTrainer:
    """The run that nothing stops."""
    trainer = make(tiny_folder, tmp_path_factory.mktemp("whole"), max_steps=2)
    trainer.train()
    return trainer


@by_its_rows
def test_a_reward_function_that_fails_stops_the_run(
    row: Row, whole: GRPOTrainer, tiny_folder: Path, tmp_path: Path
) -> None:
    fault, fields, message = STOPS[row.name]
    trainer = make(tiny_folder, tmp_path, reward_funcs=failing(fault), max_steps=2, **fields)
    error = stopped(trainer, 1, RunStopped)
    with pytest.raises(RunStopped, match=message):
        raise error
    assert_same(resumed(tiny_folder, tmp_path, max_steps=2), whole)


@by_its_rows
def test_a_call_that_succeeds_later_changes_nothing(
    row: Row, whole: GRPOTrainer, tiny_folder: Path, tmp_path: Path
) -> None:
    trainer = make(tiny_folder, tmp_path, reward_funcs=failing(raises, range(2, 4)), max_steps=2, reward_retries=2)
    trainer.train()
    assert_same(trainer, whole)


async def slow_letters(completions: list[Any], **given: Any) -> list[float]:
    return early_letters(completions)


def test_coroutines_stop_too(tiny_folder: Path, tmp_path: Path) -> None:
    letters = failing(raises)

    async def awaited(completions: list[Any], **given: Any) -> list[float]:
        return letters(completions)

    trainer = make(tiny_folder, tmp_path, reward_funcs=[awaited, slow_letters], max_steps=2)
    assert "'awaited' raised ConnectionError" in str(stopped(trainer, 1, RunStopped))


# Reward models


def reward_model(folder: Path, fails_at: int = 0) -> LlamaForSequenceClassification:
    """A tiny classifier that raises at one of its calls; TRL looks for its tokenizer where it says it is from."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = LlamaForSequenceClassification(
            LlamaConfig(
                vocab_size=len(tiny_tokenizer()),
                hidden_size=8,
                intermediate_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                num_labels=1,
                pad_token_id=tiny_tokenizer().pad_token_id,
                name_or_path=str(folder),
            )
        )
    calls: list[None] = []
    inner = model.forward

    def forward(*args: Any, **given: Any) -> Any:
        calls.append(None)
        if len(calls) == fails_at:
            raise RuntimeError("an index is out of range")
        return inner(*args, **given)

    model.forward = forward
    return model.eval()


@by_its_rows
def test_a_reward_model_that_fails_stops_the_run(row: Row, tiny_folder: Path, tmp_path: Path) -> None:
    assert row.name == "reward model"
    whole = make(tiny_folder, tmp_path / "whole", reward_funcs=reward_model(tiny_folder), max_steps=2)
    whole.train()
    trainer = make(tiny_folder, tmp_path / "stopped", reward_funcs=reward_model(tiny_folder, 2), max_steps=2)
    assert "raised RuntimeError (an index is out of range)" in str(stopped(trainer, 1, RunStopped))
    assert_same(resumed(tiny_folder, tmp_path / "stopped", reward_funcs=reward_model(tiny_folder), max_steps=2), whole)


# What goes on. Two groups of four; rewards of the one generation, and advantages by hand:
# 1, 0, 0.5 have mean 0.5 and deviation 0.5; 0, 1, 0, 1 have mean 0.5 and deviation sqrt(1/3)

HALF, THIRD = 0.5 / 0.5001, 0.5 / (3**-0.5 + 1e-4)
WITHOUT_ONE = [HALF, 0.0, -HALF, 0.0, -THIRD, THIRD, -THIRD, THIRD]
COMPLETE = [-THIRD, THIRD, -THIRD, THIRD] * 2
ALTERNATING = [0.0, 1.0, 0.0, 1.0]

Functions = list[Callable[..., Any]]
Case = tuple[Functions, dict[str, Any], list[float], float]


def answering(*rewards: Any) -> Callable[..., Any]:
    def scripted(completions: list[Any], **given: Any) -> Any:
        return list(rewards)

    return scripted


def broken(completions: list[Any], **given: Any) -> Any:
    raise ConnectionError("away")


def hanging(completions: list[Any], **given: Any) -> Any:
    return hangs(completions)


ON: dict[str, Case] = {
    "none": ([answering(1.0, None, 0.0, 0.5, *ALTERNATING)], {}, WITHOUT_ONE, 1 / 8),
    "nan": ([answering(1.0, NAN, 0.0, 0.5, *ALTERNATING)], {}, WITHOUT_ONE, 1 / 8),
    "infinity": ([answering(1.0, -INF, 0.0, 0.5, *ALTERNATING)], {}, WITHOUT_ONE, 1 / 8),
    "huge": ([answering(1.0, 1e30, 0.0, 0.5, *ALTERNATING)], {}, WITHOUT_ONE, 1 / 8),
    # The other function counts
    "one of several": (
        [answering(*ALTERNATING * 2), answering(NAN, INF, None, *[0.0] * 5)], {}, COMPLETE, 0.0
    ),
    "gone past": ([answering(*ALTERNATING * 2), broken], {"reward_errors": "unscorable"}, COMPLETE, 0.0),
    "hang gone past": (
        [answering(*ALTERNATING * 2), hanging],
        {"reward_errors": "unscorable", "reward_timeout": 0.3},
        COMPLETE,
        0.0,
    ),
    "group": ([answering(None, NAN, INF, None, *ALTERNATING)], {}, [0.0] * 4 + COMPLETE[:4], 4 / 8),
}  # fmt: skip


def once(folder: Path, out: Path, functions: Functions, **fields: Any) -> tuple[Watched, dict[str, Any]]:
    """A run of one generation, and what it logged."""
    trainer = make(folder, out, Watched, reward_funcs=functions, max_steps=1, **fields)
    before = weights(trainer.model)
    trainer.train()
    after = weights(trainer.model)
    assert all(weight.isfinite().all() for weight in after.values())
    assert any(not torch.equal(before[name], after[name]) for name in after)
    return trainer, next(entry for entry in trainer.state.log_history if UNSCORABLE in entry)


@by_its_rows
def test_rows_without_a_reward_are_left_out(row: Row, tiny_folder: Path, tmp_path: Path) -> None:
    functions, fields, wanted, share = ON[row.name]
    trainer, logged = once(tiny_folder, tmp_path, functions, **fields)
    torch.testing.assert_close(trainer.advantages[0], torch.tensor(wanted), rtol=0, atol=1e-6)
    assert logged[UNSCORABLE] == share
    # A group that nothing scores is dead
    assert logged["frac_reward_zero_std"] == (0.5 if row.name == "group" else 0.0)
    assert (trainer.advantages[0] == 0).sum() >= share * 8


# Reward servers


@by_its_rows
def test_rows_of_a_failing_judge_are_left_out(
    row: Row, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving(row.name.removeprefix("judge ")) as server:
        judge = judge_reward(server.url, "any", retries=1, backoff=0.01, timeout=0.2, workers=8)
        trainer, logged = once(tiny_folder, tmp_path, [answering(*ALTERNATING * 2), judge])
    assert server.requests == 0 if row.name == "judge down" else server.requests > 0
    torch.testing.assert_close(trainer.advantages[0], torch.tensor(COMPLETE), rtol=0, atol=1e-6)
    assert logged[UNSCORABLE] == 0.0 and logged["rewards/judge/mean"] is None


# How the judge takes its own failure, and the sentence that stops the run
JUDGES: dict[str, tuple[str, str]] = {
    "judge raises": (
        "raise",
        r"'judged' raised JudgeError \(http://127\.0\.0\.1:\d+/v1 answered with status 500 \(1 tries",
    ),
    "judge alone": ("none", r"No reward function scored 8 of the 8 completions of a generation, more than `max_unsc"),
}


@by_its_rows
def test_a_judge_that_all_hangs_on_stops_the_run(
    row: Row, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    on_failure, message = JUDGES[row.name]
    with serving() as server:
        judge = judge_reward(server.url, "any", retries=0, on_failure=on_failure, workers=8)

        def fault(completions: list[Any]) -> list[float | None]:
            server.fault = "errors"
            return judge(completions=completions, prompts=[""] * len(completions))

        def judged(completions: list[Any], prompts: list[Any], **given: Any) -> list[float | None]:
            server.fault = "none"
            return judge(completions=completions, prompts=prompts)

        whole = make(tiny_folder, tmp_path / "whole", reward_funcs=judged, max_steps=2)
        whole.train()
        trainer = make(tiny_folder, tmp_path / "run", reward_funcs=failing(fault, reward=judged), max_steps=2)
        with pytest.raises(RunStopped, match=message):
            raise stopped(trainer, 1, RunStopped)
        assert_same(resumed(tiny_folder, tmp_path / "run", reward_funcs=judged, max_steps=2), whole)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"reward_timeout": 0.0}, "`reward_timeout` is 0.0; it must be above 0 seconds, or unset"),
        ({"reward_retries": -1}, "`reward_retries` is -1; it must be at least 0"),
        ({"reward_errors": "ignore"}, "`reward_errors` is 'ignore'; it must be one of: stop, unscorable"),
        ({"max_unscorable": 50.0}, "`max_unscorable` is 50.0; it is a share, from 0 to 1"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        GRPOExtConfig(output_dir=str(tmp_path), **{**QUIET, **fields})


def test_patience_beyond_that_of_the_other_processes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def config(retries: int, **fields: Any) -> GRPOExtConfig:
        patient = {"reward_timeout": 600.0, "reward_retries": retries}
        return GRPOExtConfig(output_dir=str(tmp_path), **{**QUIET, **patient, **fields})

    monkeypatch.setattr(guard, "PAUSE", 1.0)
    config(5)
    monkeypatch.setattr(GRPOExtConfig, "world_size", property(lambda config: 2))
    # 6 calls of 600 s with 1, 2, 4, 8 and 16 s between them
    with pytest.raises(ValueError, match="busy for 3631 s, and the others give up after `ddp_timeout` 1800 s; set"):
        config(5)
    config(5, ddp_timeout=3632)
    config(1)


@pytest.mark.parametrize(("retries", "pauses"), [(0, 0), (6, 63), (7, 123), (9, 243), (10**9, 63 + 60 * (10**9 - 6))])
def test_the_longest_wait_by_hand(retries: int, pauses: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "PAUSE", 1.0)
    assert Patience(2.0, retries).longest() == pauses + 2.0 * (retries + 1)
    assert Patience(None, retries).longest() == pauses
