"""Each CPU-sized recipe really runs: tiny-sized with a random model, and the iterative one with the real model."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from grpo_ext.data.sources import DATA_FOLDER_VARIABLE
from grpo_ext.models import tiny_policy
from grpo_ext.rewards import REWARDS
from grpo_ext.rewards.rows import completion_text

ROOT = Path(__file__).resolve().parents[2]


def twins_of(recipe: str) -> list[Path]:
    return sorted((ROOT / "recipes" / recipe).glob("*_cpu.yaml"))


TWINS = [path for name in ("gsm8k", "math", "cmath", "deepseekmath") for path in twins_of(name)]
TINY = {
    "dtype": "float32",
    "bf16": "false",
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "num_generations": 4,
    "max_completion_length": 12,
    "train_size": 16,
    "eval_size": 4,
    "sft_steps": 1,
    "sft_batch_size": 4,
    "lora_r": 4,
    "sample_every": 0,
}
ROUNDS = {"steps_per_round": 1, "save_steps": 1, "reward_problems": 8, "reward_samples": 4, "reward_lora_r": 4}


def words(**options: Any) -> list[str]:
    return [word for key, value in options.items() for word in (f"--{key}", str(value))]


def early(completions: list[Any], **kwargs: Any) -> list[float]:
    """Right about every other time, which a random model's answers never are."""
    return [float(completion_text(text)[:1] < "N") for text in completions]


def save_tiny(folder: Path) -> Path:
    model, tokenizer = tiny_policy(seed=0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few rows of each set, in files of the names that the loaders look for."""
    gsm8k = {"question": "What is 1 + 1?", "answer": "It is 2.\n#### 2"}
    math = {"problem": "$1+1$?", "solution": "$2$.", "answer": "2", "subject": "Algebra", "level": 1}
    cmath = {"grade": 1, "input": "一加一？", "golden": "2", "reasoning_step": 1}
    files = {"gsm8k_train": gsm8k, "gsm8k_test": gsm8k, "math_train": math, "math500_dev": math, "cmath_dev": cmath}
    for name, row in files.items():
        (tmp_path / f"{name}.jsonl").write_text(f"{json.dumps(row, ensure_ascii=False)}\n" * 24, encoding="utf-8")
    monkeypatch.setenv(DATA_FOLDER_VARIABLE, str(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("path", TWINS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_cpu_twin_runs(path: Path, data: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = save_tiny(tmp_path / "tiny")
    for name in ("correct_strict", "correct_math_strict"):
        monkeypatch.setitem(REWARDS, name, early)
    rounds = "num_rounds" in path.read_text()
    options = {**TINY, "model_name_or_path": tiny, "output_dir": tmp_path / "run"}
    options |= {**ROUNDS, "reward_model": tiny} if rounds else {"max_steps": 2}
    recipe = importlib.import_module(f"grpo_ext.recipes.{path.parent.name}")
    assert recipe.main(["--config", str(path), *words(**options)]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["steps"] == 2
    assert set(summary["evaluations"]) == set(summary["recipe"]["eval_datasets"])
    assert all(score["after"]["problems"] == 4 for score in summary["evaluations"].values())
    assert summary["command"].startswith(f"python -m grpo_ext.recipes.{path.parent.name} --config")
    if rounds:
        assert [row["round"] for row in summary["reward_model"]] == [1, 2]
        assert summary["reward_model"][1]["replayed"] > 0


@pytest.mark.slow
def test_two_rounds_with_the_real_model(tmp_path: Path) -> None:
    """DeepSeekMath's Algorithm 1 on built-in problems: the reference renewed, old pairs replayed, the run resumed.

    The policy is the real one; its reward model begins as a tiny model, which takes half a minute less.
    """
    from grpo_ext.recipes.deepseekmath import main

    path = ROOT / "recipes" / "deepseekmath" / "iterative_cpu.yaml"
    options = {"output_dir": tmp_path, "difficulty": "one_step", "steps_per_round": 2, "save_steps": 2}
    options |= {"sft_steps": 3, "sft_batch_size": 8, "eval_size": 1, "sample_every": 0, "max_completion_length": 16}
    # In float32 the policy and its copy agree to the last digits
    options |= {"dtype": "float32", "bf16": "false", "gradient_accumulation_steps": 1, "num_generations": 4}
    options |= {"per_device_train_batch_size": 8, "learning_rate": 1e-4, "reward_problems": 16}
    options |= {"reward_model": save_tiny(tmp_path / "tiny"), "reward_lora_r": 0}
    command = ["--config", str(path), *words(**options)]
    assert main(command) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    first, second = summary["reward_model"]
    assert first["replayed"] == 0 and second["replayed"] == round(second["new_pairs"] / 9) > 0
    steps = trained(tmp_path)
    assert [row["rounds/round"] for row in steps] == [1, 1, 2, 2]
    assert steps[1]["kl"] > 1e-5 and steps[3]["kl"] > 1e-5
    assert abs(steps[0]["kl"]) < 1e-7 and abs(steps[2]["kl"]) < 1e-7

    (tmp_path / "metrics.jsonl").unlink()
    # All that was learned is in the checkpoint, so the warm-up may be left out
    resume = words(resume_from_checkpoint=tmp_path / "checkpoint-2", sft_steps=0)
    assert main([*command, *resume]) == 0
    same = ("kl", "reward", "grad_norm", "loss", "rounds/reward_model_accuracy", "rounds/reward_model_replay_share")
    resumed = trained(tmp_path)
    assert [row["step"] for row in resumed] == [3, 4]
    for row, other in zip(steps[2:], resumed, strict=True):
        assert [row.get(name) for name in same] == [other.get(name) for name in same]
    assert json.loads((tmp_path / "summary.json").read_text())["reward_model"] == summary["reward_model"]


def trained(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "reward" in row]
