"""A fault anywhere in a step: the step before it is saved, and the resumed run ends as the uninterrupted one."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fault_runs import assert_same, failing, resumed, stopped
from resume_runs import CASES, COMMON, rare
from tiny_runs import early_letters, make, prompts

from grpo_ext.checkpoints import LAST, MANIFEST, flaw
from grpo_ext.faults import FAULTED, RunStopped
from grpo_ext.launch import run
from grpo_ext.trainer.faults import StoppableTrainer

# What every micro-batch's loss goes through; where `_compute_loss` is replaced, rows are packed in another way
LOSS = "_noted"
# Blocks of two updates; each step's first micro-batch but one is in the middle of something
RUN: dict[str, Any] = {**COMMON, "save_strategy": "no", "max_steps": 4}


def case(name: str, **fields: Any) -> dict[str, Any]:
    """Arguments of `make` for one of the cases that are killed elsewhere."""
    given = {**RUN, **CASES[name], **fields}
    given["reward_funcs"] = rare if "resampling" in given else early_letters
    if "num_rounds" in given:
        given |= {"steps_per_round": given["max_steps"] // 2, "max_steps": -1}
    if name == "streamed":
        given["dataset"] = prompts().to_iterable_dataset()
    return given


class Fault(Exception):
    """What nobody expects."""


def at_call(owner: Any, name: str, count: int) -> list[None]:
    """Raise at a call of a method; returns its calls."""
    inner: Callable[..., Any] = getattr(owner, name)
    calls: list[None] = []

    def faulty(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        if len(calls) == count:
            raise Fault("as it happens")
        return inner(*args, **kwargs)

    setattr(owner, name, faulty)
    return calls


# Moments of a step


def test_a_fault_in_the_middle_of_a_step_is_resumed_exactly(tiny_folder: Path, tmp_path: Path) -> None:
    given = case("full")
    whole = make(tiny_folder, tmp_path / "whole", **given)
    whole.train()
    trainer = make(tiny_folder, tmp_path / "stopped", **given)
    at_call(trainer, LOSS, 4)
    found = stopped(trainer, 1, Fault)
    assert str(found) == "as it happens"
    assert_same(resumed(tiny_folder, tmp_path / "stopped", **given), whole)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_fault_at_any_loss_and_any_reward(name: str, tiny_folder: Path, tmp_path: Path) -> None:
    # A step is two losses, a generation two steps, an epoch four; a stream that begins again is not resumed exactly
    steps = {"rounds": 8, "streamed": 4}.get(name, 6)
    given = case(name, num_iterations=1, max_steps=steps)
    whole = make(tiny_folder, tmp_path / "whole", **given)
    losses = at_call(whole, LOSS, 0)
    rewards = at_call(whole, "_calculate_rewards", 0)
    whole.train()
    assert len(losses) == 2 * steps and len(rewards) >= 2
    moments = [(LOSS, count) for count in (3, 2 * steps - 2)]
    moments += [("_calculate_rewards", count) for count in range(2, len(rewards) + 1)]
    for method, count in moments:
        out = tmp_path / f"{method}{count}"
        trainer = make(tiny_folder, out, **given)
        at_call(trainer, method, count)
        with pytest.raises(Fault):
            trainer.train()
        if trainer.state.global_step == 0:
            # A later round of the first generation
            assert "resampling" in given and not list(out.glob("checkpoint-*"))
            continue
        (saved,) = out.glob("checkpoint-*")
        assert flaw(saved) is None and saved.name == f"checkpoint-{trainer.state.global_step}"
        assert_same(resumed(tiny_folder, out, **given), whole)


def test_an_update_that_has_begun_is_not_saved(tiny_folder: Path, tmp_path: Path) -> None:
    trainer = make(tiny_folder, tmp_path)

    class Broken(torch.optim.SGD):
        steps = 0

        def step(self, *args: Any, **kwargs: Any) -> Any:
            self.steps += 1
            super().step(*args, **kwargs)
            if self.steps == 2:
                raise Fault("after some of the weights")

    trainer.optimizer = Broken(trainer.model.parameters(), lr=0.1)
    with pytest.raises(Fault) as found:
        trainer.train()
    assert trainer.state.global_step == 1
    assert found.value.__notes__ == [
        "There is no checkpoint of the last step, because none was complete or its update had begun."
    ]
    assert not list(tmp_path.glob("checkpoint-*"))


def test_before_the_first_step_there_is_nothing_to_save(tiny_folder: Path, tmp_path: Path) -> None:
    trainer = make(tiny_folder, tmp_path)
    at_call(trainer, LOSS, 1)
    with pytest.raises(Fault) as found:
        trainer.train()
    assert "none was complete" in found.value.__notes__[0] and not list(tmp_path.glob("checkpoint-*"))


def test_a_fault_in_an_evaluation_leaves_the_step_before_it(tiny_folder: Path, tmp_path: Path) -> None:
    trainer = make(tiny_folder, tmp_path, max_steps=2)
    trainer.eval_dataset = prompts().select(range(2))
    at_call(trainer, "_calculate_rewards", 2)
    trainer.args.eval_strategy, trainer.args.eval_steps = "steps", 1
    stopped(trainer, 1, Fault)
    # The step had been logged, so a resumed run does not log it again
    again = resumed(tiny_folder, tmp_path, max_steps=2)
    assert [row["step"] for row in again.state.log_history if "loss" in row] == [1, 2]


class Training:
    """What is trained for each round."""

    def __init__(self) -> None:
        self.trained: list[int] = []

    def begin(self, number: int, trainer: Any) -> dict[str, float]:
        self.trained.append(number)
        return {"trained": float(len(self.trained))}

    def state(self) -> dict[str, Any]:
        return {"trained": self.trained}

    def restore(self, state: dict[str, Any], trainer: Any) -> None:
        self.trained = list(state["trained"])


@pytest.mark.slow
@pytest.mark.parametrize(("method", "count"), [(LOSS, 5), ("renew_reference", 2)])
def test_what_was_trained_for_a_round_is_trained_once(
    method: str, count: int, tiny_folder: Path, tmp_path: Path
) -> None:
    given = case("rounds", num_iterations=1, logging_steps=1)

    def trainer(out: str) -> Any:
        made = make(tiny_folder, tmp_path / out, **given)
        made.round_update = Training()
        return made

    whole = trainer("whole")
    whole.train()
    faulty = trainer("stopped")
    at_call(faulty, method, count)
    stopped(faulty, 2, Fault)
    again = trainer("stopped")
    again.train(resume_from_checkpoint=LAST)
    assert again.round_update.trained == [0, 1]
    assert_same(again, whole)


# What is on disk


def test_a_step_that_is_saved_is_not_saved_again(tiny_folder: Path, tmp_path: Path) -> None:
    trainer = make(tiny_folder, tmp_path, save_strategy="steps", save_steps=1)
    at_call(trainer, LOSS, 3)
    saves = at_call(trainer, "_save_checkpoint", 0)
    with pytest.raises(Fault) as found:
        trainer.train()
    assert len(saves) == 1
    folder = tmp_path / "checkpoint-1"
    assert found.value.__notes__ == [f"Stopped after step 1. Resume with: --resume_from_checkpoint {folder}"]


@pytest.mark.slow
def test_a_checkpoint_of_an_earlier_run_is_not_taken_for_it(tiny_folder: Path, tmp_path: Path) -> None:
    make(tiny_folder, tmp_path, max_steps=1, learning_rate=0.5, save_strategy="steps", save_steps=1).train()
    os.utime(tmp_path / "checkpoint-1" / MANIFEST, (1e9, 1e9))
    whole = make(tiny_folder, tmp_path / "whole")
    whole.train()
    trainer = make(tiny_folder, tmp_path)
    at_call(trainer, LOSS, 3)
    stopped(trainer, 1, Fault)
    assert_same(resumed(tiny_folder, tmp_path), whole)


def test_a_disk_that_is_full_too_hides_nothing(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    trainer = make(tiny_folder, tmp_path)
    at_call(trainer, LOSS, 3)
    monkeypatch.setattr(trainer, "_save_optimizer_and_scheduler", full)
    with pytest.raises(Fault) as found:
        trainer.train()
    assert found.value.__notes__[0].startswith(f"Step 1 could not be saved in {tmp_path / 'checkpoint-1'}")
    assert not list(tmp_path.glob("checkpoint-*"))


def test_the_second_ctrl_c_means_at_once(tiny_folder: Path, tmp_path: Path) -> None:
    def pressed(completions: list[Any]) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as found:
        make(tiny_folder, tmp_path, reward_funcs=failing(pressed), max_steps=4).train()
    assert not getattr(found.value, "__notes__", None) and not list(tmp_path.glob("checkpoint-*"))


def test_a_process_that_fails_alone_does_not_save(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make(tiny_folder, tmp_path)
    at_call(trainer, LOSS, 3)
    # Two of them stop together in test_reward_processes.py
    trainer._before_it_goes_on = lambda *error: (
        monkeypatch.setattr(type(trainer.accelerator), "num_processes", 2),
        StoppableTrainer._before_it_goes_on(trainer, *error),
    )[1]
    with pytest.raises(Fault) as found:
        trainer.train()
    assert found.value.__notes__[0].startswith("Step 1 is not saved, because a checkpoint is made by all processes")
    assert not list(tmp_path.glob("checkpoint-*"))


# Recipes


def test_a_recipe_prints_the_sentence_and_what_was_saved(capsys: pytest.CaptureFixture[str]) -> None:
    def main(argv: Any) -> int:
        error = RunStopped("Reward function 'judge' raised ConnectionError; mend it.")
        error.add_note("Stopped after step 7, which was saved. Resume with: --resume_from_checkpoint out/checkpoint-7")
        raise error

    root = logging.getLogger("grpo_ext")
    handlers = list(root.handlers)
    with pytest.raises(SystemExit) as found:
        run(main)
    root.handlers[:] = handlers
    assert found.value.code == FAULTED == 70
    assert capsys.readouterr().err.splitlines() == [
        "error: Reward function 'judge' raised ConnectionError; mend it.",
        "Stopped after step 7, which was saved. Resume with: --resume_from_checkpoint out/checkpoint-7",
    ]
