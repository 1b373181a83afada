"""Tiny runs that log what the page of metrics lists, each with the names that it is there for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset

from grpo_ext import GRPOExtConfig, GRPOExtTrainer
from grpo_ext.models import tiny_policy

QUIET: dict[str, Any] = {
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
    "logging_steps": 1,
    "per_device_train_batch_size": 8,
    "num_generations": 4,
    "max_completion_length": 6,
    "max_steps": 1,
}
ROUNDS = {"num_rounds": 2, "steps_per_round": 1, "max_steps": 2}


@dataclass(frozen=True)
class Run:
    """Fields of a run and what only it logs."""

    fields: Mapping[str, Any] = field(default_factory=dict)
    sees: frozenset[str] = frozenset()


def prefixed(prefix: str, names: str) -> frozenset[str]:
    return frozenset(f"{prefix}/{name}" for name in names.split())


RUNS = {
    "trl": Run({"beta": 0.1, "entropy_coef": 0.01}, frozenset({"kl", "policy_loss", "effective_samples", "loss"})),
    "own": Run(
        {"surrogate": "clip", "beta": 0.1, "kl_in": "reward", "kl_controller": "ppo", "kl_target": 0.1, **ROUNDS},
        frozenset({"ratio", "beta", "kl_in_reward", "clip_ratio/high_max", "rounds/round"}),
    ),
    "capped": Run(
        {"surrogate": "cispo", "epsilon_high": 5.0, "resampling": "dynamic_sampling"},
        frozenset({"cispo_clip_ratio"})
        | prefixed("resampling", "rounds groups_replaced carried live_groups shortfall reward")
        | prefixed("resampling", "tokens_trained tokens_discarded"),
    ),
    "adaptive": Run(
        {"resampling": "adaptive_group_size"},
        prefixed("resampling", "budget groups_grown group_size_min group_size_max"),
    ),
    "process": Run(
        {"process_reward": "rollouts_soft", "process_rollouts": 1, "process_rollout_check": "correct"},
        prefixed("process", "steps reward unrewarded varied_rows rollout_tokens estimated reused left_out"),
    ),
}


def early_letters(completions: list[str], **kwargs: Any) -> list[float]:
    """A reward with spread in nearly every group."""
    return [sum(c < "N" for c in text) / max(len(text), 1) for text in completions]


def logged(name: str, folder: Path) -> set[str]:
    """Everything that a run logs."""
    for part in (pair := tiny_policy(seed=0)):
        part.save_pretrained(folder / "tiny")
    model, tokenizer = type(pair[0]).from_pretrained(folder / "tiny"), pair[1]
    trainer = GRPOExtTrainer(
        model=model,
        reward_funcs=early_letters,
        args=GRPOExtConfig(output_dir=str(folder), **{**QUIET, **RUNS[name].fields}),
        train_dataset=Dataset.from_dict({"prompt": ["abc", "de", "q", "1 + 1"], "answer": ["1", "2", "3", "4"]}),
        processing_class=tokenizer,
    )
    trainer.train()
    return {key for row in trainer.state.log_history for key in row}
