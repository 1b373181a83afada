"""Every way in which the package opens a model that somebody names."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from datasets import Dataset

from grpo_ext import GRPOExtConfig, GRPOExtTrainer
from grpo_ext.data.preferences import preference_pairs
from grpo_ext.evaluation.subjects import load, subject_named
from grpo_ext.models import load_policy, load_tokenizer, tiny_policy
from grpo_ext.recipes import evaluate, gsm8k, process_reward, reward_model, rlhf
from grpo_ext.recipes.iterative import ReplayedReward, RoundRewardArguments
from grpo_ext.recipes.reward_training import train_reward_model
from grpo_ext.rewards.process_model import load_process_model
from grpo_ext.rewards.reward_model import load_reward_model

ROWS = {"prompt": ["a", "b"], "answer": ["1", "2"]}


def words(**options: Any) -> list[str]:
    return [word for key, value in options.items() for word in (f"--{key}", str(value))]


def small(folder: Path, out: Path) -> list[str]:
    """A recipe's command line."""
    return words(
        model_name_or_path=folder, output_dir=out, dtype="float32", bf16="false", max_steps=1, train_size=8,
        per_device_train_batch_size=4, num_generations=4, max_completion_length=4, gradient_checkpointing="false",
        eval_size=2, save_strategy="no",
    )  # fmt: skip


def solving(folder: Path, out: Path) -> list[str]:
    """The command line of a recipe that learns from a policy's solutions."""
    return words(model_name_or_path=folder, output_dir=out, problems=2, held_out=1, max_completion_length=4)


def trainer(out: Path, model: Any = None, rewards: Any = None, **fields: Any) -> GRPOExtTrainer:
    policy, tokenizer = tiny_policy(seed=0)
    return GRPOExtTrainer(
        model=model or policy,
        reward_funcs=rewards or (lambda completions, **columns: [0.0] * len(completions)),
        args=GRPOExtConfig(
            output_dir=str(out), use_cpu=True, bf16=False, report_to="none", max_completion_length=4,
            per_device_train_batch_size=4, num_generations=4, gradient_checkpointing=False, **fields,
        ),
        train_dataset=Dataset.from_dict(ROWS),
        processing_class=None if model else tokenizer,
    )  # fmt: skip


def rounds(folder: Path, out: Path) -> None:
    arguments = RoundRewardArguments(reward_model=str(folder))
    reward = ReplayedReward(arguments, Dataset.from_dict(ROWS), tiny_policy(seed=0)[1], check=lambda **columns: [])
    reward.begin(0, SimpleNamespace(args=SimpleNamespace(output_dir=str(out)), accelerator=None))


def rolling_out(folder: Path, out: Path) -> None:
    fields = {"process_reward": "rollouts_soft", "process_rollout_model": str(folder)}
    trainer(out, **fields)._continue_from([[5, 6]], 1, [2])


# What the policy itself goes through, where a flag may let its code run
POLICY: dict[str, Callable[[Path, Path], Any]] = {
    "load_policy": lambda folder, out: load_policy(folder, dtype="float32", lora_r=0),
    "evaluation": lambda folder, out: load(subject_named(str(folder)), "float32"),
    "recipe evaluate": lambda folder, out: evaluate.main(
        [str(folder), *words(task="arithmetic", problems=1, max_completion_length=2, output_dir=out, dtype="float32")]
    ),
    "recipe gsm8k": lambda folder, out: gsm8k.main([*small(folder, out), "--dataset", "arithmetic"]),
    "recipe rlhf": lambda folder, out: rlhf.main(small(folder, out)),
    "recipe reward_model": lambda folder, out: reward_model.main([*solving(folder, out), "--preferences", "policy"]),
    "recipe process_reward": lambda folder, out: process_reward.main(solving(folder, out)),
}
# What scores or rolls out, whose code never runs
OTHERS: dict[str, Callable[[Path, Path], Any]] = {
    "load_reward_model": lambda folder, out: load_reward_model(str(folder)),
    "load_process_model": lambda folder, out: load_process_model(str(folder)),
    "train_reward_model": lambda folder, out: train_reward_model(folder, preference_pairs(size=2), out / "reward"),
    "base of recipe process_reward": lambda folder, out: process_reward.main(
        [*solving(folder, out), "--source", "changed"]
    ),
    "rounds": rounds,
    "process_rollout_model": rolling_out,
}
# TRL's own, when a trainer is given a name
BY_NAME: dict[str, Callable[[Path, Path], Any]] = {
    "a policy by name": lambda folder, out: trainer(out, model=str(folder)),
    "a reward model by name": lambda folder, out: trainer(out, rewards=[str(folder)]),
}
TOKENIZERS: dict[str, Callable[[Path, Path], Any]] = {
    "load_tokenizer": lambda folder, out: load_tokenizer(str(folder)),
    **{name: POLICY[name] for name in ("load_policy", "recipe evaluate")},
    **{name: OTHERS[name] for name in ("train_reward_model", "base of recipe process_reward")},
}
