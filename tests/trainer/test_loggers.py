"""Weights & Biases and trackio get what TRL logs, without a network and with all our callbacks beside them."""

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from logger_runs import trained

pytestmark = pytest.mark.loggers
NAMES = {"reward", "reward_std", "kl", "entropy", "frac_reward_zero_std", "completions/mean_length", "grad_norm"}


def test_weights_and_biases(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"MODE": "offline", "DIR": str(tmp_path), "PROJECT": "grpo", "SILENT": "true"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    import wandb

    rows = trained(tiny_folder, tmp_path, report_to="wandb")
    try:
        summary = dict(wandb.run.summary)
    finally:
        wandb.finish()
    assert {f"train/{name}" for name in NAMES} <= set(summary)
    assert summary["train/reward"] == pytest.approx(rows[-1]["reward"])
    assert summary["completions"] is not None
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


def test_trackio(tiny_folder: Path, tmp_path: Path) -> None:
    # In a process of its own: the folder is read when TRL imports trackio
    script = Path(__file__).with_name("logger_runs.py")
    done = subprocess.run(
        [sys.executable, script, tiny_folder, tmp_path],
        env={**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio")},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads(done.stdout.splitlines()[-1])
    (database,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(database) as connection:
        kept = [json.loads(values) for (values,) in connection.execute("select metrics from metrics order by id")]
    logged = [values for values in kept if "train/reward" in values]
    assert [values["train/reward"] for values in logged] == pytest.approx([row["reward"] for row in rows])
    assert all({f"train/{name}" for name in NAMES} <= set(values) for values in logged)
    assert sum("completions" in values for values in kept) >= 2
