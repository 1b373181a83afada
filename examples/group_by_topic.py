"""Advantages relative to all completions of a topic instead of one prompt: `group_by` names a column of the dataset.

With few completions of a prompt, many prompts are all right or all wrong and teach nothing. Rows that share a topic
(or a task, or a difficulty) are more, and their mean is a steadier baseline. Run it: python examples/group_by_topic.py
"""

from typing import Any

from datasets import Dataset

from grpo_ext import GRPOExtConfig, GRPOExtTrainer, load_policy
from grpo_ext.data.arithmetic import arithmetic
from grpo_ext.recipes.warm_up import warm_up
from grpo_ext.rewards import correct_final

NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"


def problems(size: int) -> Dataset:
    """Word problems; `template` says which operations solve one, such as "add" or "multiply_add"."""
    return arithmetic("train", size, difficulty="mixed").rename_column("template", "topic")


def main(model: str = NAME, size: int = 512, sft_steps: int = 4, **fields: Any) -> GRPOExtTrainer:
    """Train with groups by topic, and say how many topics' groups a generation had."""
    policy, tokenizer = load_policy(model, lora_r=32)
    warm_up(policy, tokenizer, arithmetic("train", 16 * sft_steps, seed=1), sft_steps, 16, 3e-4)
    settings = {
        "output_dir": "runs/group_by_topic",
        "group_by": "topic",  # relative to all rows of the same topic in a generation batch
        "num_generations": 4,
        "per_device_train_batch_size": 64,
        "max_completion_length": 32,
        "max_steps": 10,
        "learning_rate": 2e-4,
        "beta": 0.0,
        "logging_steps": 1,
        "report_to": "none",
        "gradient_checkpointing": False,
    }
    trainer = GRPOExtTrainer(
        model=policy,
        reward_funcs=correct_final,
        args=GRPOExtConfig(**{**settings, **fields}),
        train_dataset=problems(size),
        processing_class=tokenizer,
    )
    trainer.train()
    rows = [row for row in trainer.state.log_history if "effective_samples" in row]
    print(f"Rows that teach: {[round(row['effective_samples'], 1) for row in rows]}")
    return trainer


if __name__ == "__main__":
    main()
