"""Unsloth's generated trainer with a vLLM engine on its policy, as `fast_inference` leaves it, on a CPU.

Prints, for each way that an adapter reaches the engine, whether the engine was used again and how far its
log-probabilities are from the policy's.
"""

import json
from pathlib import Path
from typing import Any

from generated_runs import use_generated_class

STEPS = 3


def run(folder: Path, engine: Any, **way: Any) -> dict[str, Any]:
    import tiny_runs

    import real_vllm
    from grpo_ext import GRPOExtConfig, GRPOExtTrainer
    from grpo_ext.models import tiny_tokenizer

    policy = real_vllm.policy(str(folder))
    policy.for_training = lambda *args, **kwargs: policy.train()
    policy.for_inference = lambda *args, **kwargs: policy.eval()
    policy._unsloth_user_float32 = True
    policy.vllm_engine = engine
    tokenizer = tiny_tokenizer()
    config = GRPOExtConfig(
        output_dir=str(folder / "run"),
        **{**tiny_runs.QUIET, "learning_rate": 0.3, "max_steps": STEPS, "beta": 0.04, "use_vllm": True, **way},
        vllm_importance_sampling_mode="token_truncate",
        # A random policy samples the pad token too, which Unsloth's loss takes for padding
        generation_kwargs={"logit_bias": {tokenizer.pad_token_id: -100.0}} if "num_beams" not in way else None,
    )
    trainer = GRPOExtTrainer(
        model=policy,
        reward_funcs=tiny_runs.early_letters,
        args=config,
        train_dataset=tiny_runs.prompts(),
        processing_class=tokenizer,
    )
    trainer.train()
    logged = [row for row in trainer.state.log_history if "grad_norm" in row]
    return {
        "same_engine": trainer.vllm_generation.llm is engine,
        "fused": trainer.fuses_loss,
        "apart": [row.get("sampling/sampling_logp_difference/mean") for row in logged],
        "norms": [row["grad_norm"] for row in logged],
    }


def main() -> None:
    use_generated_class()
    from vllm import LLM

    import real_vllm

    folder = Path("tiny").resolve()
    real_vllm.save_tiny(folder)
    engine = LLM(
        str(folder), dtype="float32", enable_lora=True, max_lora_rank=8, max_model_len=128, enforce_eager=True,
        disable_log_stats=True,
    )  # fmt: skip
    # As after fast_inference, where Unsloth goes past the sync
    engine.shared_weights = True
    adapter = {"vllm_sync": "adapter"}
    beams = {"group_generation": "beam", "num_beams": 4, "vllm_importance_sampling_correction": False}
    found = {
        "fused": run(folder, engine, **adapter),
        "ours": run(folder, engine, **adapter, surrogate="geometric"),
        "beams": run(folder, engine, **adapter, **beams),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
