"""An aggregation of your own without a fork: one function and one row, added before the config reads the table.

Half way between a mean over the tokens of an output and their sum. In a checkout put the row into the table itself:
the laws of all aggregations are then tested for it too. Run it: python examples/own_aggregation.py
"""

from typing import Any

from torch import Tensor

from grpo_ext.ops.aggregation import AGGREGATIONS, Window
from grpo_ext.ops.masking import masked_mean

NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"


def seq_mean_token_root(losses: Tensor, mask: Tensor, window: Window) -> Tensor:
    """(1/R) Σ_i (1/√|o_i|) Σ_t L_{i,t}, from (B, T) losses and their (B, T) mask."""
    means = masked_mean(losses.expand_as(mask), mask, dim=1)
    # Divided by the rows of the whole step, so that micro-batches add up
    return (means * mask.sum(1).to(losses.dtype).sqrt()).sum() / window.rows


AGGREGATIONS["seq_mean_token_root"] = seq_mean_token_root


def main(model: str = NAME, size: int = 256, sft_steps: int = 4, **fields: Any) -> Any:
    """Train with it."""
    from grpo_ext import GRPOExtConfig, GRPOExtTrainer, load_policy
    from grpo_ext.data.arithmetic import arithmetic
    from grpo_ext.recipes.warm_up import warm_up
    from grpo_ext.rewards import correct_final

    policy, tokenizer = load_policy(model, lora_r=32)
    warm_up(policy, tokenizer, arithmetic("train", 16 * sft_steps, seed=1), sft_steps, 16, 3e-4)
    settings = {
        "output_dir": "runs/own_aggregation",
        "aggregation": "seq_mean_token_root",
        "per_device_train_batch_size": 32,
        "max_completion_length": 32,
        "max_steps": 10,
        "learning_rate": 2e-4,
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
