"""A script for TRL with one import changed: what was `from trl import ...` is the line below, the rest is as it was.

With nothing of ours set, advantages and loss are TRL's own, and the run ends with the same weights. What is new is
there as further fields: try aggregation="token_mean", or advantage_baseline="leave_one_out". Run it:
python examples/stock_script.py
"""

from typing import Any

from datasets import Dataset
from peft import LoraConfig

from grpo_ext import GRPOExtConfig as GRPOConfig
from grpo_ext import GRPOExtTrainer as GRPOTrainer

NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"


def reward_num_unique_letters(completions: list[Any], **kwargs: Any) -> list[float]:
    """More different letters are better."""
    return [float(len(set(completion[0]["content"]))) for completion in completions]


def main(model: str = NAME, size: int = 64, **fields: Any) -> GRPOTrainer:
    """Train as with TRL."""
    asked = [f"Write a sentence about the number {number}." for number in range(size)]
    training_args = {
        "output_dir": "runs/stock_script",
        "per_device_train_batch_size": 8,
        "max_completion_length": 32,
        "max_steps": 5,
        "logging_steps": 1,
    }
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=reward_num_unique_letters,
        args=GRPOConfig(**{**training_args, **fields}),
        train_dataset=Dataset.from_dict({"prompt": [[{"role": "user", "content": text}] for text in asked]}),
        peft_config=LoraConfig(r=16, target_modules="all-linear"),
    )
    trainer.train()
    return trainer


if __name__ == "__main__":
    main()
