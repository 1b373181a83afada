"""A policy that really cheats: paid for right answers and for length, it gives up the one for the other."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from grpo_ext import GRPOExtConfig, GRPOExtTrainer
from grpo_ext.callbacks import HealthCallback
from grpo_ext.models import tiny_policy
from grpo_ext.recipes.warm_up import warm_up

LONGEST = 24


def sums(rows: int) -> Dataset:
    draw = random.Random(0)
    pairs = [(draw.randint(0, 4), draw.randint(0, 4)) for _ in range(rows)]
    return Dataset.from_dict({"prompt": [f"{a}+{b}=" for a, b in pairs], "solution": [str(a + b) for a, b in pairs]})


def right(completions: list[str], solution: list[str], **kwargs: Any) -> list[float]:
    return [float(text == answer) for text, answer in zip(completions, solution, strict=True)]


def long(completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
    return [len(ids) / LONGEST for ids in completion_ids]


def run(folder: Path, rewards: list[Any], **fields: Any) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """Train the tiny policy after a warm-up on the sums; findings by detector, and the log."""
    torch.manual_seed(0)
    model, tokenizer = tiny_policy(seed=0)
    problems = sums(2048)
    warm_up(model, tokenizer, problems, steps=20, batch_size=32, learning_rate=1e-2)
    callback = HealthCallback(folder / "health.jsonl")
    options = {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_steps": 1,
        "lr_scheduler_type": "constant",
        "learning_rate": 3e-3,
        "per_device_train_batch_size": 64,
        "num_generations": 8,
        "max_completion_length": LONGEST,
        "max_steps": 60,
    }
    trainer = GRPOExtTrainer(
        model=model,
        reward_funcs=rewards,
        args=GRPOExtConfig(**{**options, **fields}),
        train_dataset=problems,
        processing_class=tokenizer,
        callbacks=[callback],
    )
    trainer.train()
    lines = callback.path.read_text().splitlines() if callback.path.is_file() else []
    found = {row["detector"]: row for row in map(json.loads, lines)}
    return found, [row for row in trainer.state.log_history if "loss" in row]


@pytest.mark.slow
def test_cheating_is_found(tmp_path: Path) -> None:
    found, log = run(tmp_path, [right, long], reward_weights=[1.0, 3.0])
    first, last = log[0], log[-1]
    # It did cheat
    assert last["reward"] > 1.5 * first["reward"]
    assert last["completions/mean_length"] > 3 * first["completions/mean_length"]
    assert last["rewards/right/mean"] < 0.5 * first["rewards/right/mean"]
    # And it was seen
    assert found["length_hacking"]["severity"] == "critical"
    assert "`long` follows it" in found["length_hacking"]["message"]
    assert "`right` fell" in found["parts_apart"]["message"] and "`long` rose" in found["parts_apart"]["message"]


@pytest.mark.slow
def test_honest_work_is_not_called_cheating(tmp_path: Path) -> None:
    found, log = run(tmp_path, [right])
    assert log[-1]["reward"] > log[0]["reward"]
    assert not found.keys() & {"length_hacking", "parts_apart", "truncated_completions"}
