"""Groups from stock vLLM servers: only the adapter is sent after a step, and this process needs no vLLM.

Start a server:  VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve HuggingFaceTB/SmolLM2-135M-Instruct \\
                     --enable-lora --max-lora-rank 16 --logprobs-mode processed_logprobs
Then run it, with as many addresses as you have servers:  python examples/served_vllm.py http://localhost:8000
"""

import sys
from typing import Any

from grpo_ext import PRESETS, GRPOExtConfig, GRPOExtTrainer, load_policy
from grpo_ext.data.arithmetic import arithmetic
from grpo_ext.recipes.warm_up import warm_up
from grpo_ext.rewards import correct_final

NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"


def main(
    model: str = NAME, size: int = 256, sft_steps: int = 4, urls: list[str] | None = None, **fields: Any
) -> GRPOExtTrainer:
    """Train on what the servers generate."""
    policy, tokenizer = load_policy(model, lora_r=16)
    warm_up(policy, tokenizer, arithmetic("train", 16 * sft_steps, seed=1), sft_steps, 16, 3e-4)
    settings = {
        **PRESETS["dapo"],
        "resampling": None,
        "output_dir": "runs/served_vllm",
        "use_vllm": True,
        "vllm_sync": "adapter",
        "vllm_server_urls": urls,
        "vllm_importance_sampling_mode": "token_truncate",  # vLLM rounds otherwise than the policy
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
    main(urls=sys.argv[1:])
