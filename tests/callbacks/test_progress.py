"""The progress bar says how much time is left, and the log how much memory was used."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from grpo_ext.callbacks import MetricsCallback, ProgressBar


def test_the_bar_says_how_much_time_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    bar, state = ProgressBar(), SimpleNamespace(max_steps=100, global_step=0, is_world_process_zero=True)
    bar.on_train_begin(None, state, None)
    for step in (1, 2):
        state.global_step = step
        time.sleep(0.15)
        bar.on_step_end(None, state, None)
        bar.on_log(None, state, None, logs={"reward": 0.25})
    bar.on_train_end(None, state, None)
    last = capsys.readouterr().err.split("\r")[-1]
    found = re.search(r"2/100 steps, 00:0\d gone, (\d\d):(\d\d) left, reward=0.25", last)
    assert found, last
    # 98 further steps at 0.15 s or, on a busy machine, more
    assert 14 <= 60 * int(found[1]) + int(found[2]) <= 200


def test_a_resumed_run_counts_from_its_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    bar, state = ProgressBar(), SimpleNamespace(max_steps=10, global_step=6, is_world_process_zero=True)
    bar.on_train_begin(None, state, None)
    state.global_step = 7
    time.sleep(0.15)
    bar.on_step_end(None, state, None)
    bar.on_train_end(None, state, None)
    assert "7/10 steps" in capsys.readouterr().err


def test_other_processes_show_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    bar, state = ProgressBar(), SimpleNamespace(max_steps=10, global_step=0, is_world_process_zero=False)
    bar.on_train_begin(None, state, None)
    bar.on_step_end(None, state, None)
    bar.on_log(None, state, None, logs={"reward": 1.0})
    bar.on_train_end(None, state, None)
    assert capsys.readouterr().err == ""


def test_a_training_step_is_logged_with_its_memory(tmp_path: Path, log: Callable[..., None]) -> None:
    callback = MetricsCallback(tmp_path / "metrics.jsonl")
    log(callback, 1, loss=0.1, kl=float("nan"))
    log(callback, 1, training=False, train_loss=0.5)
    first, last = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert first["kl"] is None and 0.05 < first["memory/peak_gib"] < 500
    assert last == {"step": 1, "train_loss": 0.5}
