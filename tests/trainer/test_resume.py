"""A run that is killed and gone on with ends as the uninterrupted one, bit by bit."""

import json
import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from killed_runs import assert_same, logged, performed
from tiny_runs import early_letters, largest_difference, make, weights

from grpo_ext import compat
from grpo_ext.callbacks import CompletionsCallback, MetricsCallback
from grpo_ext.callbacks.interrupt import REQUEUE
from grpo_ext.checkpoints import MANIFEST, WORKING, choose, flaw

# Runs that all fast tests share, so that one process imports everything once
KILLS: dict[str, list[list[Any]]] = {
    # Before any checkpoint, in the second micro-batch of the fifth step, between a checkpoint's files and its manifest
    "full": [["call", "optimizer", 2], ["call", "micro-batch", 10], ["call", "manifest", 1]],
    # After the third step, and before a whole checkpoint of the second epoch had its name
    "resampled": [["call", "micro-batch", 10], ["call", "rename", 1]],
}
SAVED = {"name": "saved", "case": "full", "steps": 6, "fields": {"save_total_limit": 2}}


@pytest.fixture(scope="module")
def ran(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of each of the cases, uninterrupted and killed, and of a run with its checkpoints of steps 3 and 6."""
    out = tmp_path_factory.mktemp("ran")
    runs = [{"name": case, "case": case, "steps": 8} for case in KILLS]
    runs += [{"name": f"{case} killed", "case": case, "steps": 8, "kills": kills} for case, kills in KILLS.items()]
    codes = performed(tiny_folder, out, [*runs, SAVED])
    for case in KILLS:
        assert codes[case] == codes["saved"] == [0]
        assert codes[f"{case} killed"] == [-9] * len(KILLS[case]) + [0]
    return out


# Kills. Completions serve two updates each, twice over; a checkpoint falls into that


@pytest.mark.parametrize("case", KILLS)
def test_a_killed_run_ends_as_the_uninterrupted_one(case: str, ran: Path) -> None:
    assert_same(ran / f"{case} killed", ran / case)


def test_those_runs_have_something_to_lose(ran: Path) -> None:
    assert [row["resampling/carried"] for row in logged(ran / "resampled") if row["step"] == 6] == [1.0]
    assert any(row.get("resampling/groups_replaced", 0) > 0 for row in logged(ran / "full"))
    assert len({row["beta"] for row in logged(ran / "full") if "beta" in row}) > 2


@pytest.mark.slow
@pytest.mark.parametrize(("case", "steps"), [("lora", 12), ("synced", 8), ("rounds", 8), ("streamed", 8)])
def test_other_runs_too(case: str, steps: int, tiny_folder: Path, tmp_path: Path) -> None:
    kills = [["call", "micro-batch", 11], ["call", "rewards", 1], ["call", "deletion", 2]]
    runs = [{"name": "whole", "case": case, "steps": steps}]
    runs += [{"name": str(place), "case": case, "steps": steps, "kills": [kill]} for place, kill in enumerate(kills)]
    codes = performed(tiny_folder, tmp_path, runs)
    for place in range(len(kills)):
        assert codes[str(place)] == [-9, 0]
        assert_same(tmp_path / str(place), tmp_path / "whole")


@pytest.mark.slow
def test_twenty_kills_at_random_moments_of_thirty_steps(tiny_folder: Path, tmp_path: Path) -> None:
    draw = random.Random(os.urandom(8))
    kills: list[list[Any]] = [["share", draw.uniform(0.15, 0.85)] for _ in range(12)]
    kills += [["call", "micro-batch", draw.randint(1, 60)] for _ in range(4)]
    kills += [["call", name, draw.randint(1, 7)] for name in ("rename", "manifest", "deletion", "rewards")]
    runs = [{"name": "whole", "case": "full", "steps": 30}]
    runs += [{"name": str(place), "case": "full", "steps": 30, "kills": [kill]} for place, kill in enumerate(kills)]
    codes = performed(tiny_folder, tmp_path, runs)
    assert len(kills) == 20
    for place, kill in enumerate(kills):
        assert codes[str(place)] == [-9, 0], kill
        assert_same(tmp_path / str(place), tmp_path / "whole")


# Parts with a state of their own


class Drifting:
    """A reward that depends on how often it was called."""

    __name__ = "drifting"

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, completions: list[Any], **kwargs: Any) -> list[float]:
        self.calls += 1
        return [(len(text) * self.calls) % 5 / 5 for text in completions]

    def state_dict(self) -> dict[str, Any]:
        return {"calls": self.calls}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.calls = state["calls"]


def test_parts_with_a_state_are_kept_with_the_run(tiny_folder: Path, tmp_path: Path) -> None:
    ends = []
    for again in (None, "last"):
        trainer = make(
            tiny_folder, tmp_path, reward_funcs=Drifting(), max_steps=4, save_strategy="steps", save_steps=2
        )
        # A full file keeps every other step, and knows so
        completions = CompletionsCallback(tmp_path / "completions.jsonl", trainer.newest_groups, limit=1500)
        trainer.add_callback(completions)
        trainer.train(resume_from_checkpoint=again)
        if again is None:
            assert completions.state_dict()["every"] > 1
            shutil.rmtree(tmp_path / "checkpoint-4")
        ends.append((weights(trainer.model), completions.state_dict()))
    (whole, counted), (resumed, counted_again) = ends
    assert largest_difference(whole, resumed) == 0
    assert counted == counted_again


# Torn checkpoints


def cut(name: str, to: Callable[[int], int]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        os.truncate(folder / name, to((folder / name).stat().st_size))

    return damage


def changed(name: str) -> Callable[[Path], None]:
    """One bit of a file's last byte."""

    def damage(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[-1] ^= 1
        (folder / name).write_bytes(content)

    return damage


def gone(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "weights without their end": (cut("model.safetensors", lambda size: size - 1), "model.safetensors in place of"),
    "empty weights": (cut("model.safetensors", lambda size: 0), "has 0 bytes of model.safetensors"),
    "no weights": (gone("model.safetensors"), "lacks model.safetensors"),
    "half an optimizer": (cut("optimizer.pt", lambda size: size // 2), "bytes of optimizer.pt in place of"),
    "a longer optimizer": (cut("optimizer.pt", lambda size: size + 1), "bytes of optimizer.pt in place of"),
    "no random states": (gone("rng_state.pth"), "lacks rng_state.pth"),
    "another state": (changed("trainer_state.json"), "has another trainer_state.json than was saved"),
    "other completions": (changed("grpo_ext_state.safetensors"), "has another grpo_ext_state.safetensors"),
    "no manifest": (gone(MANIFEST), f"has no {MANIFEST}, which is written last"),
    "half a manifest": (cut(MANIFEST, lambda size: size // 2), f"has a {MANIFEST} that is cut off"),
}


@pytest.fixture
def saved(ran: Path) -> Path:
    """A run of six steps with its checkpoints of steps 3 and 6."""
    return ran / "saved"


@pytest.mark.parametrize("asked", ["last", "named", "True"])
@pytest.mark.parametrize("name", DAMAGES)
def test_a_torn_checkpoint_is_left_for_the_one_before(
    name: str, asked: str, saved: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    shutil.copytree(saved, out)
    damage, sentence = DAMAGES[name]
    torn, good = out / "checkpoint-6", out / "checkpoint-3"
    assert flaw(torn) is None
    # A copy in which the manifest is missing is no older than the folder itself
    damage(torn)
    assert sentence in (flaw(torn) or "")
    with caplog.at_level("INFO", logger="grpo_ext"):
        assert choose({"last": "last", "named": str(torn), "True": True}[asked], out) == good
    (said,) = [record.getMessage() for record in caplog.records if record.name == "grpo_ext"]
    assert said == f"Resume: {torn} {flaw(torn)}, so the run goes on from {good}."


@pytest.mark.slow
def test_ten_torn_checkpoints_ten_recoveries(tiny_folder: Path, saved: Path, tmp_path: Path) -> None:
    runs = [{**SAVED, "name": str(place), "again": True} for place in range(len(DAMAGES))]
    for place, (damage, _) in enumerate(DAMAGES.values()):
        out = tmp_path / str(place)
        shutil.copytree(saved, out, ignore=shutil.ignore_patterns("output.txt", "weights.safetensors"))
        damage(out / "checkpoint-6")
    codes = performed(tiny_folder, tmp_path, runs)
    assert len(DAMAGES) == 10 and set(map(tuple, codes.values())) == {(0,)}
    for place in range(10):
        out = tmp_path / str(place)
        assert_same(out, saved)
        assert f"so the run goes on from {out / 'checkpoint-3'}." in (out / "output.txt").read_text()
        assert flaw(out / "checkpoint-6") is None


def test_what_cannot_be_resumed_is_refused(saved: Path, tmp_path: Path) -> None:
    assert choose(None, tmp_path / "none") is None
    assert choose("last", tmp_path / "none") is None
    with pytest.raises(ValueError, match="has no checkpoint; leave it unset"):
        choose(True, tmp_path / "none")
    with pytest.raises(ValueError, match="'elsewhere', which is no folder"):
        choose("elsewhere", tmp_path)
    shutil.copytree(saved / "checkpoint-3", tmp_path / "checkpoint-3")
    gone("optimizer.pt")(tmp_path / "checkpoint-3")
    with pytest.raises(ValueError, match=r"checkpoint-3 lacks optimizer\.pt, and there is no whole checkpoint before"):
        choose("last", tmp_path)


def test_a_checkpoint_of_another_program_is_taken_with_a_sentence(
    tiny_folder: Path, saved: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(saved / "checkpoint-3", tmp_path / "checkpoint-3")
    for name in (MANIFEST, "grpo_ext_state.json", "grpo_ext_state.safetensors"):
        gone(name)(tmp_path / "checkpoint-3")
    trainer = make(tiny_folder, tmp_path, max_steps=4, optim="adamw_torch")
    with caplog.at_level("INFO", logger="grpo_ext"):
        trainer.train(resume_from_checkpoint="last")
    assert trainer.state.global_step == 4
    said = [record.getMessage() for record in caplog.records if record.getMessage().startswith("Resume")]
    assert "so it is taken as it is: TRL's own part alone" in said[0]
    assert "without the state of the generation block" in said[1] and "may differ" in said[1]


def test_a_renaming_that_a_kill_came_before_is_finished(saved: Path, tmp_path: Path) -> None:
    (tmp_path / WORKING).mkdir()
    for name in ("checkpoint-3", "checkpoint-6"):
        shutil.copytree(saved / name, tmp_path / WORKING / name)
    gone("optimizer.pt")(tmp_path / WORKING / "checkpoint-6")
    assert choose("last", tmp_path) == tmp_path / "checkpoint-3"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-3"]


def test_the_newest_is_not_the_one_with_the_highest_step(saved: Path, tmp_path: Path) -> None:
    # What an earlier run has left in the folder
    shutil.copytree(saved / "checkpoint-6", tmp_path / "checkpoint-6")
    shutil.copytree(saved / "checkpoint-3", tmp_path / "checkpoint-3")
    assert choose("last", tmp_path) == tmp_path / "checkpoint-6"
    manifest = tmp_path / "checkpoint-3" / MANIFEST
    found = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**found, "saved": found["saved"] + 10**12}))
    assert choose("last", tmp_path) == tmp_path / "checkpoint-3"


def test_other_micro_batches_begin_a_generation(
    tiny_folder: Path, saved: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(saved / "checkpoint-3", tmp_path / "checkpoint-3")
    fields = {"optim": "adamw_torch", "beta": 0.04, "steps_per_generation": 2, "num_iterations": 2}
    trainer = make(tiny_folder, tmp_path, max_steps=4, **fields)
    with caplog.at_level("WARNING", logger="grpo_ext"):
        trainer.train(resume_from_checkpoint="last")
    assert trainer.state.global_step == 4
    assert "without its completions, because `steps_per_generation` was 4" in caplog.text


# SIGTERM


def test_sigterm_saves_and_asks_to_be_started_again(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[int] = []

    def terminating(completions: list[Any], **kwargs: Any) -> list[float]:
        calls.append(len(completions))
        if len(calls) == 2:
            # A scheduler may say it more than once
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
        return early_letters(completions)

    handler = signal.getsignal(signal.SIGTERM)
    trainer = make(tiny_folder, tmp_path, reward_funcs=terminating, max_steps=4)
    trainer.add_callback(MetricsCallback(tmp_path / "metrics.jsonl"))
    trainer.train()
    assert trainer.interrupt.exit_code == REQUEUE == 75
    assert trainer.state.global_step == 2 and len(calls) == 2
    assert signal.getsignal(signal.SIGTERM) is handler
    assert "Stopped at step 2 by SIGTERM. Resume with: --resume_from_checkpoint" in capsys.readouterr().out
    assert flaw(tmp_path / "checkpoint-2") is None
    # The row that ends a run is not in the middle of one that goes on
    resumed = make(tiny_folder, tmp_path, max_steps=4)
    resumed.add_callback(MetricsCallback(tmp_path / "metrics.jsonl"))
    resumed.train(resume_from_checkpoint="last")
    assert resumed.interrupt.exit_code == 0
    assert [row["step"] for row in logged(tmp_path)] == [1, 2, 3, 4, 4]
    assert sum("train_loss" in row for row in logged(tmp_path)) == 1


def test_an_older_transformers_keeps_its_losses(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none(trainer: Any) -> dict[str, float]:
        raise TypeError("transformers 5.2.0 does not tell them; a newer version does")

    monkeypatch.setattr(compat, "losses", none)
    make(tiny_folder, tmp_path, save_strategy="steps", save_steps=1, max_steps=1).train()
    monkeypatch.undo()
    with caplog.at_level("WARNING", logger="grpo_ext"):
        make(tiny_folder, tmp_path, save_strategy="no", max_steps=2).train(resume_from_checkpoint="last")
    assert "without losses since the last log (transformers 5.2.0 does not tell them" in caplog.text
