"""Three steps of GRPO on GSM8K with SmolLM2 in 4 bit through Unsloth: `unsloth_grpo.py transformers|vllm FOLDER`.

What it saw is its last line, as JSON; the adapter and log-probabilities of it are in the folder.
"""

import json
import sys
from pathlib import Path
from typing import Any

from grpo_ext.backends import import_backend

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
# A prompt and one completion of it, whatever they say
PROMPT, COMPLETION = [504, 28, 8241, 253, 2443], [314, 260, 1131, 30, 198, 504]
FIELDS: dict[str, Any] = {
    "beta": 0.04,
    "use_cpu": True,
    "bf16": True,
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
    "gradient_checkpointing": False,
    "per_device_train_batch_size": 4,
    "num_generations": 4,
    "max_completion_length": 12,
    "max_steps": 3,
    "learning_rate": 2e-3,
    "logging_steps": 1,
}
GENERATION: dict[str, dict[str, Any]] = {
    "transformers": {},
    "vllm": {
        "use_vllm": True,
        "vllm_sync": "adapter",
        "vllm_max_model_length": 512,
        "vllm_importance_sampling_mode": "token_truncate",
    },
}


def different_letters(completions: list[Any], **kwargs: Any) -> list[float]:
    return [len(set(completion[0]["content"])) / 50 for completion in completions]


def log_probabilities(policy: Any) -> list[float]:
    """Of COMPLETION after PROMPT."""
    import torch

    with torch.no_grad():
        logits = policy.eval()(torch.tensor([PROMPT + COMPLETION])).logits[0, len(PROMPT) - 1 : -1].float()
    return logits.log_softmax(-1).gather(1, torch.tensor(COMPLETION)[:, None]).flatten().tolist()


def main(generation: str, folder: Path) -> dict[str, Any]:
    import_backend("unsloth")
    from grpo_ext import GRPOExtConfig, GRPOExtTrainer, load_policy
    from grpo_ext.data.gsm8k import gsm8k
    from grpo_ext.models import save_policy

    policy, tokenizer = load_policy(
        MODEL, backend="unsloth", load_in_4bit=True, random_state=1, use_gradient_checkpointing=False
    )
    before = {name: weight.detach().clone() for name, weight in policy.named_parameters()}
    first = log_probabilities(policy)
    trainer = GRPOExtTrainer(
        model=policy,
        reward_funcs=different_letters,
        args=GRPOExtConfig(output_dir=str(folder / "run"), **FIELDS, **GENERATION[generation]),
        train_dataset=gsm8k("train", size=8),
        processing_class=tokenizer,
    )
    trainer.train()
    after = dict(policy.named_parameters())
    changed = {name for name, weight in before.items() if not weight.equal(after[name])}
    adapter = {name for name in before if "lora_" in name}
    logs = [row for row in trainer.state.log_history if "grad_norm" in row]
    save_policy(policy, tokenizer, folder)
    # Trainer wraps the forward pass in autocast, for itself
    policy = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    keys = ("loss", "grad_norm", "kl", "reward", "sampling/sampling_logp_difference/mean")
    return {
        "backend": type(trainer.vllm_generation).__name__ if generation == "vllm" else "none",
        "adapters_sent": trainer.vllm_generation.adapter.number if generation == "vllm" else 0,
        "four_bit": sum(str(weight.dtype) == "torch.uint8" for weight in before.values()),
        "adapter": len(adapter),
        "adapter_changed": len(adapter & changed),
        "base_changed": sorted(changed - adapter),
        "logs": [{key: row[key] for key in keys if key in row} for row in logs],
        "types": sorted({str(weight.dtype) for name, weight in policy.named_parameters() if "lora_" in name}),
        "before": first,
        "after": log_probabilities(policy),
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]))))
