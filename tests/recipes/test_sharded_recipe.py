"""A recipe whose policy is cut up between two processes: saved whole, and measured."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tiny_recipe import words

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FSDP = ["-m", "accelerate.commands.launch", "--config_file", str(HERE.parent / "trainer" / "fsdp2_cpu.yaml")]


def run(tiny: Path, out: Path, *more: str) -> dict[str, object]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *FSDP, str(HERE / "sharded_recipe.py"), *words(tiny, out), *more]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-6000:]
    return json.loads((out / "summary.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rank", "kept"), [("4", "adapter/adapter_model.safetensors"), ("0", "model/model.safetensors")]
)
def test_sharded_weights_are_saved_whole_and_measured(tiny_folder: Path, tmp_path: Path, rank: str, kept: str) -> None:
    # A random policy earns nothing, but its entropy has a gradient
    summary = run(tiny_folder, tmp_path / "run", "--lora_r", rank, "--entropy_coef", "0.1", "--learning_rate", "0.01")
    assert summary["after"] is not None
    weights = load_file(tmp_path / "run" / kept)
    assert weights and all(weight.isfinite().all() for weight in weights.values())
    if rank == "0":
        before = load_file(tiny_folder / "model.safetensors")
        assert {name: weight.shape for name, weight in weights.items()} == {
            name: weight.shape for name, weight in before.items()
        }
        assert any((weights[name] != weight).any() for name, weight in before.items())
    else:
        assert any(weight.any() for name, weight in weights.items() if "lora_B" in name)
