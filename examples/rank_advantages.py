"""Advantages from ranks: how far an answer is off can be any number, but which of two is nearer is always clear.

With TRL's z-score one absurd answer makes all others look alike; ranks go in equal steps from +2, the best of a group,
to -2, the worst (GOPO, 2602.03876). Run it: python examples/rank_advantages.py
"""

from typing import Any

import torch

from grpo_ext import GRPOExtConfig, GRPOExtTrainer, load_policy
from grpo_ext.data.arithmetic import arithmetic
from grpo_ext.ops.advantages import advantages
from grpo_ext.rewards.numbers import last_number, parse_number
from grpo_ext.rewards.rows import completion_text

NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"


def nearness(completions: list[Any], answer: list[str], **kwargs: Any) -> list[float]:
    """Minus the distance between the last number of a completion and the answer; none counts as a million off."""
    found = [parse_number(last_number(completion_text(completion)) or "") for completion in completions]
    return [-min(abs(float(n) - float(a)), 1e6) if n is not None else -1e6 for n, a in zip(found, answer, strict=True)]


def main(model: str = NAME, size: int = 256, **fields: Any) -> GRPOExtTrainer:
    """Show both kinds of advantages on one group, then train with ranks."""
    rewards, group = torch.tensor([0.0, -1.0, -2.0, -1e6]), torch.zeros(4, dtype=torch.long)
    for baseline, scale in (("mean", "group"), ("rank", "none")):
        print(f"{baseline:5}", [round(value, 2) for value in advantages(rewards, group, baseline, scale).tolist()])
    settings = {
        "output_dir": "runs/rank_advantages",
        "advantage_baseline": "rank",
        "scale_rewards": "none",  # ranks have a scale of their own
        "num_generations": 8,
        "per_device_train_batch_size": 32,
        "max_completion_length": 32,
        "max_steps": 10,
        "learning_rate": 2e-4,
        "beta": 0.0,
        "logging_steps": 1,
        "report_to": "none",
        "gradient_checkpointing": False,
    }
    policy, tokenizer = load_policy(model, lora_r=32)
    trainer = GRPOExtTrainer(
        model=policy,
        reward_funcs=nearness,
        args=GRPOExtConfig(**{**settings, **fields}),
        train_dataset=arithmetic("train", size, difficulty="one_step"),
        processing_class=tokenizer,
    )
    trainer.train()
    return trainer


if __name__ == "__main__":
    main()
