"""What a run hands over to logs: completions, and TRL's own back ends."""

import json
from pathlib import Path

import pytest
from tiny_runs import make

from grpo_ext.callbacks import CompletionsCallback
from grpo_ext.report import read_run


def test_a_trainer_hands_over_what_it_trained_on(tiny_folder: Path, tmp_path: Path) -> None:
    trainer = make(tiny_folder, tmp_path, reward_weights=[2.0])
    path = tmp_path / "completions.jsonl"
    trainer.add_callback(CompletionsCallback(path, trainer.newest_groups))
    trainer.train()
    found = [json.loads(line) for line in path.read_text().splitlines()]
    # Two optimiser steps of two groups of four
    assert [(row["step"], row["group"], len(row["completions"])) for row in found] == [
        (1, 0, 4), (1, 1, 4), (2, 0, 4), (2, 1, 4),
    ]  # fmt: skip
    for row in found:
        for completion in row["completions"]:
            assert completion["reward"] == 2.0 * completion["rewards"]["early_letters"]
        advantages = [completion["advantage"] for completion in row["completions"]]
        assert advantages == sorted(advantages, reverse=True) and abs(sum(advantages)) < 1e-4
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in trainer.state.log_history))
    assert len(read_run(tmp_path).groups) == 4


def test_tensorboard_gets_what_trl_logs(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Not in every environment that collects this file
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    trainer = make(tiny_folder, tmp_path, report_to="tensorboard", beta=0.1)
    trainer.train()
    read = EventAccumulator(str(tmp_path / "board")).Reload()
    rewards = [(event.step, event.value) for event in read.Scalars("train/reward")]
    logged = [(row["step"], row["reward"]) for row in trainer.state.log_history if "reward" in row]
    assert [step for step, _ in rewards] == [1, 2] == [step for step, _ in logged]
    assert [value for _, value in rewards] == pytest.approx([value for _, value in logged])
    assert {"train/kl", "train/entropy", "train/frac_reward_zero_std"} <= set(read.Tags()["scalars"])
