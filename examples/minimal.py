"""The least that trains: a policy, a reward, problems. Run it: python examples/minimal.py"""

from typing import Any

from grpo_ext import PRESETS, GRPOExtConfig, GRPOExtTrainer, load_policy
from grpo_ext.data.arithmetic import arithmetic
from grpo_ext.recipes.warm_up import warm_up
from grpo_ext.rewards import correct_final

NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"


def main(model: str = NAME, size: int = 256, sft_steps: int = 4, **fields: Any) -> GRPOExtTrainer:
    """Train and return the trainer; `fields` are any of the config's."""
    policy, tokenizer = load_policy(model, lora_r=32)
    # So small a model has to see the format of an answer first, or no completion earns a reward
    warm_up(policy, tokenizer, arithmetic("train", 16 * sft_steps, seed=1), sft_steps, 16, 3e-4)
    settings = {
        **PRESETS["dr_grpo"],
        "output_dir": "runs/minimal",
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
    return trainer


if __name__ == "__main__":
    main()
