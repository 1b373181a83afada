"""Presets against each other in one process: the same policy, problems and seed, and their rewards side by side.

For a result that means something, `python -m grpo_ext.recipes.compare` runs several seeds at equal generated tokens,
measures held-out problems, and writes a table with intervals. Run it: python examples/compare_presets.py
"""

from statistics import fmean
from typing import Any

from transformers import set_seed

from grpo_ext import PRESETS, GRPOExtConfig, GRPOExtTrainer, load_policy
from grpo_ext.data.arithmetic import arithmetic
from grpo_ext.recipes.warm_up import warm_up
from grpo_ext.rewards import correct_final

NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
CHOSEN = ("dr_grpo", "gspo", "cispo")


def main(model: str = NAME, size: int = 256, sft_steps: int = 4, **fields: Any) -> dict[str, list[float]]:
    """Train each, and print the mean reward of each step's completions."""
    rewards = {}
    for name in CHOSEN:
        set_seed(0)
        policy, tokenizer = load_policy(model, lora_r=32)
        warm_up(policy, tokenizer, arithmetic("train", 16 * sft_steps, seed=1), sft_steps, 16, 3e-4)
        settings = {
            **PRESETS[name],
            "output_dir": f"runs/compare_presets/{name}",
            "per_device_train_batch_size": 32,
            "max_completion_length": 32,
            "max_steps": 10,
            "learning_rate": 2e-4,
            "logging_steps": 1,
            "report_to": "none",
        }
        trainer = GRPOExtTrainer(
            model=policy,
            reward_funcs=correct_final,
            args=GRPOExtConfig(**{**settings, **fields}),
            train_dataset=arithmetic("train", size, difficulty="one_step"),
            processing_class=tokenizer,
        )
        trainer.train()
        rewards[name] = [row["reward"] for row in trainer.state.log_history if "reward" in row]
    for name, values in rewards.items():
        print(f"{name:8} {' '.join(f'{value:.2f}' for value in values)}   last three: {fmean(values[-3:]):.3f}")
    return rewards


if __name__ == "__main__":
    main()
