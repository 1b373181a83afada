"""Stages before RL that are killed, stopped or torn end with the weights of an uninterrupted run."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer

from grpo_ext.checkpoints import MANIFEST, WORKING, flaw
from grpo_ext.data.preferences import preference_pairs
from grpo_ext.models import tiny_policy
from grpo_ext.recipes.reward_training import RewardStage
from grpo_ext.recipes.rlhf import main
from grpo_ext.recipes.supervised import Stage, Supervised, chosen_answers, tune

HERE = Path(__file__).parent
STAGES = ("sft", "reward", "grpo")
# Four optimiser steps of two passes, a checkpoint at the second and the fourth
TUNED = Supervised(learning_rate=1e-2, batch_size=8, micro_batch_size=4, save_steps=2)


def words(model: Path, output: Path, **more: Any) -> list[str]:
    given = {
        "model_name_or_path": model,
        "output_dir": output,
        "dtype": "float32",
        "bf16": "false",
        "gradient_checkpointing": "false",
        "lora_r": 4,
        "train_size": 32,
        "eval_size": 4,
        "sft_batch_size": 8,
        "sft_save_steps": 2,
        "reward_batch_size": 8,
        "reward_save_steps": 2,
        "reward_lora_r": 4,
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 4,
        "num_generations": 4,
        "max_completion_length": 4,
        "max_steps": 2,
        "save_steps": 1,
        **more,
    }
    return [word for key, value in given.items() for word in (f"--{key}", str(value))]


def weights(run: Path) -> list[bytes]:
    """What each stage has left."""
    folders = [run / "sft" / "model", run / "reward" / "model", run / "grpo" / "adapter"]
    return [next(folder.glob("*.safetensors")).read_bytes() for folder in folders]


class Stopped(Exception):
    """What ends a training in the middle."""


def tuned(folder: Path, stop_at: int | None = None) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """A supervised stage from the folder's newest checkpoint on; `stop_at` a forward pass it dies."""
    policy, tokenizer = tiny_policy(seed=0)
    passes: list[None] = []

    def count(*_: Any) -> None:
        passes.append(None)
        if len(passes) == stop_at:
            raise Stopped

    policy.register_forward_hook(count)
    summary = tune(policy, tokenizer, chosen_answers(preference_pairs("train", 32)), folder, TUNED)
    return {**summary, "passes": len(passes)}, policy.state_dict()


@pytest.mark.parametrize("lost", ["model.safetensors", "optimizer.pt", MANIFEST])
def test_a_torn_checkpoint_of_a_stage_is_left_for_the_one_before(
    lost: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole, expected = tuned(tmp_path / "whole")
    folder = tmp_path / "torn"
    tuned(folder)
    older, newest = folder / "checkpoint-2", folder / "checkpoint-4"
    assert flaw(older) is None and flaw(newest) is None and not (folder / WORKING).exists()
    os.truncate(newest / lost, (newest / lost).stat().st_size - 1)
    with caplog.at_level("WARNING", logger="grpo_ext"):
        again, found = tuned(folder)
    assert f"so the run goes on from {older}." in caplog.text
    # The third and the fourth step
    assert again["passes"] == 4 and again["losses"] == whole["losses"]
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())
    assert flaw(newest) is None


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "trainer"), [("sft", Stage), ("reward", RewardStage)])
def test_sigterm_in_a_stage_saves_and_the_same_command_goes_on(
    stage: str,
    trainer: type[Trainer],
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    given = [*words(tiny_folder, run, sft_save_steps=0, reward_save_steps=0), "--stages", "sft", "reward"]
    handler, step = signal.getsignal(signal.SIGTERM), trainer.training_step
    steps: list[str] = []

    def terminated(self: Any, *args: Any, **kwargs: Any) -> Any:
        steps.append(type(self).__name__)
        if steps.count(trainer.__name__) == 3:
            signal.raise_signal(signal.SIGTERM)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(trainer, "training_step", terminated)
    assert main(given) == 75
    assert signal.getsignal(signal.SIGTERM) is handler
    assert "was stopped at step 3. The same command goes on with it." in capsys.readouterr().out
    place = run / stage / ("checkpoints" if stage == "sft" else "model/checkpoints")
    assert [path.name for path in place.glob("checkpoint-*")] == ["checkpoint-3"]
    assert flaw(place / "checkpoint-3") is None
    steps.clear()
    assert main(given) == 0
    assert steps.count(trainer.__name__) == 1
    assert not place.exists()
    assert json.loads((run / "summary.json").read_text())["stages"][stage]["steps"] == 4


@pytest.mark.slow
def test_killed_in_each_stage(tiny_folder: Path, tmp_path: Path) -> None:
    # Counted from each start: the supervised stage after its checkpoint of step 2, and before that of step 4 has its
    # name; the reward model in its first step, and between the files and the manifest of its second checkpoint; the
    # last stage while it deletes an older checkpoint
    kills = [("optimizer", 3), ("rename", 1), ("optimizer", 1), ("manifest", 2), ("deletion", 3)]
    runs = {name: tmp_path / name for name in ("whole", "killed")}
    plan = [
        {"words": words(tiny_folder, out / "run"), "out": str(out), "kills": kills if name == "killed" else []}
        for name, out in runs.items()
    ]
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    places = [HERE.parents[1], HERE, HERE.parent / "trainer", os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, places))}
    command = [sys.executable, str(HERE / "stage_runs.py"), str(tmp_path / "plan.json")]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=300)
    said = (runs["killed"] / "output.txt").read_text()
    assert json.loads(done.stdout.splitlines()[-1]) == [[0], [-9] * len(kills) + [0]], said
    assert [said.count(f"Stage {stage}: in") for stage in STAGES] == [3, 3, 2], said
    for stage, found, expected in zip(
        STAGES, weights(runs["killed"] / "run"), weights(runs["whole"] / "run"), strict=True
    ):
        assert found == expected, f"{stage}\n{said}"
