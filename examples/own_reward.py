"""Rewards of your own: functions of the completions and of the dataset's columns, beside the ones that are there.

Each is logged under its name, `reward_weights` says how much it counts, and `None` means that it does not apply to a
row. Run it: python examples/own_reward.py
"""

from typing import Any

from grpo_ext import GRPOExtConfig, GRPOExtTrainer, load_policy
from grpo_ext.data.arithmetic import arithmetic
from grpo_ext.rewards import correct_final
from grpo_ext.rewards.numbers import last_number, parse_number
from grpo_ext.rewards.rows import completion_text

NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"


def close(completions: list[Any], answer: list[str], **kwargs: Any) -> list[float | None]:
    """1 for the answer, less the further off a number is, and nothing to say where there is none."""
    found = [parse_number(last_number(completion_text(completion)) or "") for completion in completions]
    return [
        None if number is None else 1.0 / (1.0 + abs(float(number) - float(gold)))
        for number, gold in zip(found, answer, strict=True)
    ]


def main(model: str = NAME, size: int = 256, **fields: Any) -> GRPOExtTrainer:
    """Train with two rewards, the second one worth a fifth of the first."""
    policy, tokenizer = load_policy(model, lora_r=32)
    settings = {
        "output_dir": "runs/own_reward",
        "reward_weights": [1.0, 0.2],
        "per_device_train_batch_size": 32,
        "max_completion_length": 32,
        "max_steps": 10,
        "learning_rate": 2e-4,
        "logging_steps": 1,
        "report_to": "none",
    }
    trainer = GRPOExtTrainer(
        model=policy,
        reward_funcs=[correct_final, close],
        args=GRPOExtConfig(**{**settings, **fields}),
        train_dataset=arithmetic("train", size, difficulty="one_step"),  # with a column `answer`
        processing_class=tokenizer,
    )
    trainer.train()
    return trainer


if __name__ == "__main__":
    main()
