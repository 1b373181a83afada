"""The callback: what it prints and writes, when it stops a run, what a resumed run remembers, what the loss means."""

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from logged_runs import ILL, healthy
from transformers import TrainerControl, TrainerState, TrainingArguments

from grpo_ext import GRPOExtConfig, GRPOExtTrainer
from grpo_ext.callbacks import HealthCallback
from grpo_ext.callbacks.progress import SHOWN
from grpo_ext.health import HealthOptions, at_the_end, at_the_start, chosen
from grpo_ext.models import tiny_policy


def fed(callback: HealthCallback, rows: list[dict[str, Any]], folder: Path) -> list[int]:
    """Log rows as Trainer does, until the callback stops it; the steps that asked for a checkpoint."""
    args, state, control = TrainingArguments(output_dir=str(folder)), TrainerState(), TrainerControl()
    callback.on_train_begin(args, state, control)
    saved = []
    for step, row in enumerate(rows, start=1):
        state.global_step = step
        state.log_history.append({**row, "step": step})
        callback.on_log(args, state, control, logs=row)
        saved += [step] if control.should_save else []
        if control.should_training_stop:
            break
    callback.on_train_end(args, state, control)
    return saved


def written(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def test_a_finding_is_printed_and_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "health.jsonl"
    path.write_text("of an earlier run\n")
    with caplog.at_level(logging.INFO, logger="grpo_ext"):
        assert fed(HealthCallback(path), ILL["dead_groups"][0](0), tmp_path) == []
    (row,) = written(path)
    assert list(row) == ["step", "detector", "severity", "message", "value"]
    assert (row["detector"], row["severity"]) == ("dead_groups", "warning")
    assert row["value"] >= 0.9
    first, finding, last = (record.getMessage() for record in caplog.records)
    assert finding == f"Health, step {row['step']}, dead_groups (warning): {row['message']}"
    assert "near 0 is normal" in first and "says nothing about learning" in last


def test_a_gradient_that_is_no_number_is_null_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "health.jsonl"
    fed(HealthCallback(path), ILL["gradient_spikes"][1](0), tmp_path)
    (row,) = written(path)
    assert row["value"] is None and row["severity"] == "critical"


def test_evaluations_and_the_last_row_are_left_out(tmp_path: Path) -> None:
    callback = HealthCallback(tmp_path / "health.jsonl")
    rows: list[dict[str, Any]] = [{"eval_loss": 0.0, "kl": 9.0}, {"train_loss": 0.0, "kl": 9.0}, {"kl": 9.0}, {}]
    fed(callback, rows * 10, tmp_path)
    assert written(callback.path) == []


def test_only_the_named_detectors_stop(tmp_path: Path) -> None:
    rows = ILL["dead_groups"][0](0)
    other = HealthCallback(tmp_path / "other.jsonl", stop_on=["kl_drift"])
    assert fed(other, rows, tmp_path) == [] and other.stopped_by is None
    callback = HealthCallback(tmp_path / "health.jsonl", stop_on=["kl_drift", "dead_groups"])
    (saved,) = fed(callback, rows, tmp_path)
    assert callback.stopped_by is not None
    assert (callback.stopped_by.detector, callback.stopped_by.step) == ("dead_groups", saved)
    assert written(callback.path)[-1]["step"] == saved < len(rows)


def test_thresholds_reach_the_callback(tmp_path: Path) -> None:
    callback = HealthCallback(tmp_path / "health.jsonl", chosen(["truncated_completions.share=0.01"]))
    fed(callback, healthy(0), tmp_path)
    assert [row["detector"] for row in written(callback.path)] == ["truncated_completions"]


def test_a_resumed_run_remembers(tmp_path: Path) -> None:
    path, rows = tmp_path / "health.jsonl", [{"loss": 0.0, "kl": 1.0}] * 12
    fed(HealthCallback(path), rows, tmp_path)
    before = written(path)
    callback = HealthCallback(path, stop_on=["kl_drift"])
    state, control = TrainerState(global_step=12), TrainerControl()
    state.log_history = [{**row, "step": step} for step, row in enumerate(rows, start=1)]
    args = TrainingArguments(output_dir=str(tmp_path))
    callback.on_train_begin(args, state, control)
    for step in range(13, 30):
        state.global_step = step
        callback.on_log(args, state, control, logs={"loss": 0.0, "kl": 1.0})
    assert written(path) == before and callback.stopped_by is None


@pytest.mark.parametrize(
    ("stop_on", "health", "says"),
    [
        (["kl_drft"], [], "did you mean 'kl_drift'"),
        (["kl_drift"], ["kl_drift=off"], "drop one"),
        ([], ["kl_drift.limit=x"], "positive number"),
    ],
)
def test_options_that_cannot_be_meant(stop_on: list[str], health: list[str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        HealthOptions(stop_on=stop_on, health=health)


def test_options_take_commas_and_spaces() -> None:
    options = HealthOptions(stop_on=["dead_groups,kl_drift", "parts_apart"], health=["kl_drift.limit=2"])
    assert options.stop_on == ["dead_groups", "kl_drift", "parts_apart"]
    assert options.detectors()["kl_drift"].limit == 2.0  # type: ignore[attr-defined]


# What stands in the place of the loss


def test_the_loss_is_explained_with_the_numbers_of_the_run() -> None:
    row = {"loss": 0.0031, "effective_samples": 37.6, "grad_norm": 0.25}
    start = at_the_start(row)
    assert start.startswith("The loss is 0.0031,") and "(here 38)" in start and "(here 0.25)" in start
    end = at_the_end([{**row, "reward": 0.1}] * 10 + [{**row, "reward": 0.5}] * 10)
    assert "was 0.0031 on average" in end and "from 0.1 to 0.5" in end and "38 effective samples" in end
    assert at_the_start({"reward": 1.0}) == at_the_end([{"reward": 1.0}]) == ""
    assert "(here" not in at_the_start({"loss": 0.0, "grad_norm": math.nan})


def test_the_bar_shows_samples_and_gradient_and_no_loss() -> None:
    assert {"effective_samples", "grad_norm"} < set(SHOWN)
    assert "loss" not in SHOWN


# A real run


def no_spread(completions: list[Any], **kwargs: Any) -> list[float]:
    return [0.3] * len(completions)


def test_a_run_without_spread_stops_with_a_checkpoint(tmp_path: Path) -> None:
    model, tokenizer = tiny_policy(seed=0)
    callback = HealthCallback(tmp_path / "health.jsonl", stop_on=["dead_groups"])
    trainer = GRPOExtTrainer(
        model=model,
        reward_funcs=no_spread,
        args=GRPOExtConfig(
            output_dir=str(tmp_path),
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            logging_steps=1,
            per_device_train_batch_size=4,
            num_generations=4,
            max_completion_length=4,
            max_steps=20,
        ),
        train_dataset=Dataset.from_dict({"prompt": ["a", "b", "c", "d"]}),
        processing_class=tokenizer,
        callbacks=[callback],
    )
    trainer.train()
    assert trainer.state.global_step == 8
    assert (tmp_path / "checkpoint-8" / "trainer_state.json").is_file()
    assert callback.stopped_by is not None and callback.stopped_by.severity == "critical"
    assert [row["effective_samples"] for row in trainer.state.log_history if "loss" in row] == [0.0] * 8
    # The same trainer goes on from there, because what was found is known
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    assert trainer.state.global_step == 20
