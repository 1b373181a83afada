"""Through Unsloth, in 4 bit: the back end first, then the same lines as ever.

On a GPU Unsloth's kernels run; without one its CPU back end does, with real 4-bit weights. Needs the extra `unsloth`,
see docs/how-to/unsloth.md. Run it: python examples/unsloth_lora.py
"""

from typing import Any

from grpo_ext.backends import import_backend

NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"


def main(model: str = NAME, size: int = 256, sft_steps: int = 4, load_in_4bit: bool = True, **fields: Any) -> Any:
    """Train an adapter and save it."""
    import_backend("unsloth")  # it rewrites TRL's classes, so it comes before whatever imports them

    from grpo_ext import PRESETS, GRPOExtConfig, GRPOExtTrainer, load_policy
    from grpo_ext.data.arithmetic import arithmetic
    from grpo_ext.models import save_policy
    from grpo_ext.recipes.warm_up import warm_up
    from grpo_ext.rewards import correct_final

    settings = {
        **PRESETS["gspo"],
        "output_dir": "runs/unsloth_lora",
        "per_device_train_batch_size": 16,
        "max_completion_length": 32,
        "max_steps": 10,
        "learning_rate": 2e-4,
        "report_to": "none",
    }
    settings |= fields
    policy, tokenizer = load_policy(model, backend="unsloth", load_in_4bit=load_in_4bit, max_seq_length=512, lora_r=16)
    warm_up(policy, tokenizer, arithmetic("train", 16 * sft_steps, seed=1), sft_steps, 16, 3e-4)
    trainer = GRPOExtTrainer(
        model=policy,
        reward_funcs=correct_final,
        args=GRPOExtConfig(**settings),
        train_dataset=arithmetic("train", size, difficulty="one_step"),
        processing_class=tokenizer,
    )
    trainer.train()
    save_policy(policy, tokenizer, settings["output_dir"], ["adapter"])
    return trainer


if __name__ == "__main__":
    main()
