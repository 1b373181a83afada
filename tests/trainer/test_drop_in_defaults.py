"""TRL's own defaults, and several processes: the same run as with the stock trainer."""

import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from drop_in_runs import assert_same_log, both, run, spelled
from tiny_runs import QUIET, STOCK, early_letters, largest_difference
from torch import Tensor
from trl import GRPOConfig

HERE = Path(__file__).parent

# AdamW, autocast to bfloat16, gradient checkpointing, rows in another order in each epoch. Not TRL's is what a run of
# a second on a CPU asks for.
DEFAULTS = {
    **{spec.name: spec.default for spec in fields(GRPOConfig) if spec.name in QUIET},
    **{name: QUIET[name] for name in ("use_cpu", "report_to", "save_strategy", "disable_tqdm", "logging_steps")},
    "max_completion_length": 8,
    "learning_rate": 1e-3,
    "num_train_epochs": 2,
}


def scenario(folder: Path, **given: Any) -> dict[str, Any]:
    return {"MODEL": lambda: str(folder), "reward_funcs": early_letters, "FIELDS": DEFAULTS, **given}


def lengths(completions: list[str], **kwargs: Any) -> list[float]:
    return [float(len(text)) for text in completions]


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return torch.cat([(one[name] - other[name]).flatten() for name in one]).norm().item()


@pytest.mark.slow
def test_defaults_but_bfloat16_equal_stock(tiny_folder: Path, tmp_path: Path) -> None:
    without = {**DEFAULTS, "bf16": False}
    stock, ours = both(tiny_folder, tmp_path, scenario(tiny_folder, FIELDS=without))
    assert stock.trainer.args.gradient_checkpointing and stock.trainer.args.shuffle_dataset
    assert stock.trainer.args.optim.startswith("adamw") and stock.trainer.state.epoch == 2
    assert_same_log(stock, ours)
    assert ours.events == stock.events
    # AdamW moves a weight by the learning rate however small its gradient is, so by a part of that for a rounding
    assert largest_difference(stock.start, stock.end) > 5e-3
    assert largest_difference(stock.end, ours.end) < 1e-5
    assert distance(stock.end, ours.end) < 1e-4 * distance(stock.start, stock.end)


# Of completions that nobody samples, because a rounding in bfloat16 may draw another token
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:You are using:UserWarning")
def test_defaults_are_as_near_to_float32_as_stock(tiny_folder: Path, tmp_path: Path) -> None:
    asked = scenario(tiny_folder, rollout_func=spelled, reward_funcs=lengths)
    exact = run(tiny_folder, tmp_path, STOCK, {**asked, "FIELDS": {**DEFAULTS, "bf16": False}})
    stock, ours = both(tiny_folder, tmp_path, asked)
    far = distance(exact.end, stock.end)
    assert 1e-3 < far < 0.1 * distance(exact.start, exact.end)
    assert distance(exact.end, ours.end) < 1.5 * far
    # AdamW does not see by how much all gradients are too long
    for theirs, mine in zip(stock.log[:-1], ours.log[:-1], strict=True):
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=0.05)


@pytest.mark.slow
def test_two_processes_equal_stock(tiny_folder: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
            *(str(HERE / "drop_in_processes.py"), str(tiny_folder), str(tmp_path)),
        ],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(
                [*map(str, (HERE.parents[1], HERE.parent, HERE)), os.environ.get("PYTHONPATH", "")]
            ),
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        },
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
