"""The least that trains: a policy, a reward, problems. Run it: python examples/minimal.py"""

from typing import Any

from grpo_ext import PRESETS, GRPOExtConfig, GRPOExtTrainer, load_policy
from grpo_ext.data.arithmetic import arithmetic
from grpo_ext.rewards import correct_final

NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"


def main(model: str = NAME, size: int = 256, **fields: Any) -> GRPOExtTrainer:
    """Train and return the trainer; `fields` are any of the config's."""
    policy, tokenizer = load_policy(model, lora_r=32)
    settings = {**PRESETS["dr_grpo"], "output_dir": "runs/minimal", "max_completion_length": 32, "max_steps": 10}
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
