"""A KL coefficient that follows a target: `kl_controller` moves `beta` after each step.

"ziegler" changes it by at most 2 % a step towards the target (1909.08593, sec. 2.2), "ppo" halves or doubles it
(1707.06347, sec. 4). Checkpoints keep the present value. Run it: python examples/adaptive_kl.py
"""

from typing import Any

from grpo_ext import GRPOExtConfig, GRPOExtTrainer, load_policy
from grpo_ext.data.arithmetic import arithmetic
from grpo_ext.recipes.warm_up import warm_up
from grpo_ext.rewards import correct_final

NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"


def main(model: str = NAME, size: int = 512, sft_steps: int = 4, **fields: Any) -> GRPOExtTrainer:
    """Train, and show the measured KL beside the coefficient that answers it."""
    policy, tokenizer = load_policy(model, lora_r=32)
    warm_up(policy, tokenizer, arithmetic("train", 16 * sft_steps, seed=1), sft_steps, 16, 3e-4)
    settings = {
        "output_dir": "runs/adaptive_kl",
        "beta": 0.04,  # where it starts
        "kl_controller": "ppo",
        "kl_target": 0.02,  # nats a token
        "use_bias_correction_kl": False,
        "num_generations": 8,
        "per_device_train_batch_size": 32,
        "max_completion_length": 32,
        "max_steps": 12,
        "learning_rate": 3e-4,
        "logging_steps": 1,
        "report_to": "none",
        "gradient_checkpointing": False,
    }
    trainer = GRPOExtTrainer(
        model=policy,
        reward_funcs=correct_final,
        args=GRPOExtConfig(**{**settings, **fields}),
        train_dataset=arithmetic("train", size, difficulty="one_step"),
        processing_class=tokenizer,
    )
    trainer.train()
    for row in trainer.state.log_history:
        if "kl" in row:
            print(f"step {row['step']:3}: KL {row['kl']:.4f}, beta of the next step {row['beta']:.4f}")
    return trainer


if __name__ == "__main__":
    main()
