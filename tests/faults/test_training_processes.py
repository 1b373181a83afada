"""Faults of one of two processes, on which both must agree."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import largest_difference, make

from grpo_ext import GRPOExtTrainer

HERE = Path(__file__).resolve().parent


@pytest.mark.slow
def test_a_fault_of_one_process_is_of_both(tiny_folder: Path, tmp_path: Path) -> None:
    paths = [HERE.parents[1], HERE, HERE.parent / "trainer", os.environ.get("PYTHONPATH", "")]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, str(HERE / "training_processes.py"), str(tiny_folder), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    ranks: list[dict[str, Any]] = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in (0, 1)]
    for rank in ranks:
        first, second, third = rank["weights"]
        assert largest_difference(first, second) == 0.0 < largest_difference(second, third)
        assert rank["skipped"] == 1
        assert rank["stopped"].startswith("checkpoint-3 could not be written (torch wrote a part of a file)")
    assert largest_difference(ranks[0]["end"], ranks[1]["end"]) == 0.0
    assert sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]


def test_one_process_alone_does_not_halve_its_gradients(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer: GRPOExtTrainer = make(tiny_folder, tmp_path)
    monkeypatch.setattr(type(trainer.accelerator), "num_processes", 2)
    assert trainer._indivisible(False, False, {}) is None
    trainer._whole = trainer._indivisible(True, False, {})
    trainer._tried = 4
    # Not RunStopped, which saves a checkpoint with the others
    with pytest.raises(torch.OutOfMemoryError) as caught:
        trainer._halve(True, torch.OutOfMemoryError("no room"))
    (note,) = caught.value.__notes__
    assert "is not halved, because with several processes each runs one backward pass a micro-batch" in note


@pytest.mark.parametrize(
    ("gradient", "aux", "extra", "reason"),
    [
        (True, True, {}, "its router loss is of the whole micro-batch"),
        (True, False, {"pixel_values": torch.zeros(1)}, "a micro-batch of more than text is not split"),
        (False, False, {"pixel_values": torch.zeros(1)}, None),
        (True, False, {"pixel_values": None}, None),
    ],
)
def test_what_is_not_split(
    gradient: bool, aux: bool, extra: dict[str, Any], reason: str | None, tiny_folder: Path, tmp_path: Path
) -> None:
    trainer = make(tiny_folder, tmp_path)
    assert trainer._indivisible(gradient, aux, extra) == reason
    trainer.is_fsdp_enabled = True
    assert trainer._indivisible(gradient, aux, extra) == "under FSDP and DeepSpeed all processes run as many passes"
