"""Two processes, with whole weights (DDP) and with sharded ones (FSDP2), train what one does on the same completions.

All cases of one kind run in one launch, because starting processes takes longer than the runs.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from process_cases import CASES, DRAWN
from torch import Tensor

HERE = Path(__file__).parent
CONFIGS = {
    "ddp": HERE.parents[1] / "recipes" / "accelerate" / "ddp_cpu.yaml",
    "fsdp2": HERE / "fsdp2_cpu.yaml",
}
KINDS = list(CONFIGS)
TOGETHER = [name for name in DRAWN if name not in ("killed", "resumed")]
# Of the way that the weights have gone: float32 sums in another order
SAME = 1e-5
# What does not depend on how rows are split into micro-batches
METRICS = ("loss", "grad_norm", "reward", "reward_std", "effective_samples", "dead_groups", "num_tokens", "beta")


def launched(kind: str, policy: Path, out: Path, cases: list[str], timeout: float = 600.0) -> int:
    """Exit code of a run of some cases; what the processes say is in `out/KIND.txt`."""
    command = [sys.executable]
    if kind in CONFIGS:
        command += ["-m", "accelerate.commands.launch", "--config_file", str(CONFIGS[kind])]
    path = os.pathsep.join([str(HERE.parents[1]), str(HERE), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with (out / f"{kind}.txt").open("a") as log:
        # A group of its own, so that no process is left behind by a run that hangs
        started = subprocess.Popen(
            [*command, str(HERE / "process_cases.py"), str(policy), str(out / kind), *cases],
            env=environment, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        try:
            return started.wait(timeout)
        except subprocess.TimeoutExpired:
            os.killpg(started.pid, signal.SIGKILL)
            started.wait()
            return -signal.SIGKILL


@pytest.fixture(scope="module")
def runs(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with `KIND/CASE.pt` of all cases."""
    out = tmp_path_factory.mktemp("processes")
    for kind in ("one", *KINDS):
        cases = [*CASES, *(TOGETHER if kind in CONFIGS else [])]
        code = launched(kind, tiny_folder, out, cases)
        assert code == 0, (out / f"{kind}.txt").read_text()[-6000:]
    return out


def found(runs: Path, kind: str, name: str) -> dict[str, Any]:
    return torch.load(runs / kind / f"{name}.pt", weights_only=False)


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return sum((one[name].double() - other[name].double()).square().sum().item() for name in one) ** 0.5


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_equal_to_one_process(name: str, kind: str, runs: Path) -> None:
    one, two = found(runs, "one", name), found(runs, kind, name)
    moved = apart(one["before"], one["after"])
    assert moved > 0.02
    assert apart(one["after"], two["after"]) <= SAME * moved
    for theirs, mine in zip(one["logs"], two["logs"], strict=True):
        for metric in METRICS:
            if metric in theirs:
                assert mine[metric] == pytest.approx(theirs[metric], rel=SAME, abs=1e-6), metric


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ends_early", "ends_early_lora", "beams"])
def test_sharded_weights_generate_as_whole_ones(name: str, runs: Path) -> None:
    whole, sharded = found(runs, "ddp", name), found(runs, "fsdp2", name)
    assert apart(whole["after"], sharded["after"]) <= SAME * apart(whole["before"], whole["after"])
    lengths = [[row.get("completions/mean_length") for row in run["logs"]] for run in (whole, sharded)]
    assert lengths[0] == lengths[1]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_resampling_goes_on_where_processes_lack_other_numbers_of_groups(kind: str, runs: Path) -> None:
    logs = [row for row in found(runs, kind, "resampled")["logs"] if "loss" in row]
    assert sum(row["resampling/groups_replaced"] for row in logs) > 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_killed_and_resumed(kind: str, runs: Path, tiny_folder: Path) -> None:
    assert launched(kind, tiny_folder, runs, ["killed"]) != 0
    folder = runs / kind / "killed"
    assert not (runs / kind / "killed.pt").exists() and (folder / "checkpoint-3").is_dir()
    assert launched(kind, tiny_folder, runs, ["resumed"]) == 0, (runs / f"{kind}.txt").read_text()[-6000:]
    whole, resumed = found(runs, kind, "uninterrupted"), found(runs, kind, "resumed")
    assert all(torch.equal(weight, resumed["after"][name]) for name, weight in whole["after"].items())
