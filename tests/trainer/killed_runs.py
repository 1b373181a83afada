"""Runs that are killed and gone on with, in processes of their own, and how they are compared."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from grpo_ext.checkpoints import WORKING

HERE = Path(__file__).parent
# What a log says about the machine and not about the run
MACHINE = {
    "step_time",
    "memory/peak_gib",
    "train_runtime",
    "train_samples_per_second",
    "train_steps_per_second",
}


def performed(policy: Path, out: Path, runs: list[dict[str, Any]]) -> dict[str, list[int]]:
    """Exit codes of the processes of each run."""
    out.mkdir(parents=True, exist_ok=True)
    plan = out / "plan.json"
    plan.write_text(json.dumps({"policy": str(policy), "out": str(out), "runs": runs}))
    path = os.pathsep.join([str(HERE.parents[1]), str(HERE), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    subprocess.run([sys.executable, str(HERE / "resume_runs.py"), str(plan)], env=environment, check=True, timeout=400)
    return {result["name"]: result["codes"] for result in json.loads((out / "results.json").read_text())}


def logged(run: Path) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name not in MACHINE} for line in lines]


def assert_same(run: Path, whole: Path) -> None:
    output = (run / "output.txt").read_text()
    assert (run / "weights.safetensors").is_file(), output
    found, expected = (load_file(folder / "weights.safetensors") for folder in (run, whole))
    assert found.keys() == expected.keys()
    assert all(found[name].numpy().tobytes() == expected[name].numpy().tobytes() for name in expected), output
    assert logged(run) == logged(whole), output
    assert not (run / WORKING).exists()
    assert "without" not in output, output
