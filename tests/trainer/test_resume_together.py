"""Resuming where processes see different files, or write at the same time: one process stands for several here."""

import json
import shutil
from pathlib import Path

import pytest
from tiny_runs import make

from grpo_ext.callbacks import CompletionsCallback
from grpo_ext.checkpoints import WORKING, flaw, recover
from grpo_ext.trainer import STATE_FILE, GRPOExtTrainer


@pytest.fixture(scope="module")
def saved(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose completions serve a further step."""
    out = tmp_path_factory.mktemp("saved")
    make(tiny_folder, out, max_steps=1, num_iterations=2, beta=0.04, save_strategy="steps", save_steps=1).train()
    return out / "checkpoint-1"


@pytest.mark.parametrize("processes", [1, 2])
def test_a_process_without_a_file_takes_up_what_all_share(
    processes: int, tiny_folder: Path, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(saved, tmp_path / saved.name)
    state = tmp_path / saved.name / STATE_FILE
    found = json.loads(state.read_text())
    assert found["completions"] is not None and found["step"] > 0
    found |= {"beta": 0.25, "generated tokens": 77, "layout": {**found["layout"], "processes": processes}}
    state.write_text(json.dumps(found))
    trainer = make(tiny_folder, tmp_path, num_iterations=2, beta=0.04)
    trainer.get_train_dataloader()
    monkeypatch.setattr(trainer, "_state_path", lambda folder: folder / "of_a_further_process.json")
    lost = trainer._take_up(state.parent)
    assert (trainer.beta, trainer.generated_tokens, trainer._step, trainer._buffered_inputs) == (0.25, 77, 0, None)
    why = "of which a process has no file" if processes == 1 else "because `processes` was 2"
    assert lost == [f"its completions, {why}"]


def test_a_process_makes_the_folder_that_it_saves_in(tiny_folder: Path, tmp_path: Path) -> None:
    trainer = make(tiny_folder, tmp_path)
    trainer.get_train_dataloader()
    trainer._save_state(tmp_path / WORKING / "checkpoint-1")
    assert (tmp_path / WORKING / "checkpoint-1" / STATE_FILE).is_file()


def test_processes_that_choose_different_checkpoints_are_stopped(
    tiny_folder: Path, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("grpo_ext.trainer.saving.gather_object", lambda found: [*found, None])
    shutil.copytree(saved, tmp_path / saved.name)
    with pytest.raises(ValueError, match=r"different checkpoints \(checkpoint-1, none\); `output_dir` must be"):
        make(tiny_folder, tmp_path).train(resume_from_checkpoint="last")


def test_a_renaming_by_another_process_is_let_be(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("checkpoint-1", "checkpoint-2"):
        shutil.copytree(saved, tmp_path / WORKING / name)

    def renamed_meanwhile(folder: Path) -> str | None:
        if folder.name == "checkpoint-1":
            folder.rename(tmp_path / folder.name)
        return folder.stat() and flaw(folder)

    monkeypatch.setattr("grpo_ext.checkpoints.folders.flaw", renamed_meanwhile)
    recover(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1", "checkpoint-2"]


def test_callbacks_of_one_class_keep_a_state_each(tiny_folder: Path, tmp_path: Path) -> None:
    trainer, other = (make(tiny_folder, tmp_path) for _ in range(2))
    for name in ("first", "second"):
        for one in (trainer, other):
            one.add_callback(CompletionsCallback(tmp_path / name, one.newest_groups, limit=1000))

    def kept(one: GRPOExtTrainer) -> list[CompletionsCallback]:
        return [part for part in one.callback_handler.callbacks if isinstance(part, CompletionsCallback)]

    for part, every in zip(kept(trainer), (4, 8), strict=True):
        part.load_state_dict({**part.state_dict(), "every": every})
    states = trainer._own_states()
    assert {"CompletionsCallback", "CompletionsCallback 2"} <= states.keys()
    other._take_up_own_states(states)
    assert [part.state_dict()["every"] for part in kept(other)] == [4, 8]
