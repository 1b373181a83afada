"""A tiny policy through Unsloth's CPU back end, beside the one of transformers and peft: `unsloth_policy.py FOLDER`.

Unsloth stays in the process that imports it, so this is a program of its own. What it saw is its last line, as JSON.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch

from grpo_ext.backends import active_backend
from grpo_ext.models import load_policy, save_policy, tiny_policy

ASKED = {"load_in_4bit": True, "dtype": "float32", "lora_r": 4, "random_state": 7}


def gradients(policy: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    policy.zero_grad()
    policy(input_ids=ids, labels=ids).loss.backward()
    return torch.cat([w.grad.flatten() for w in policy.parameters() if w.requires_grad and w.grad is not None])


def wake(policy: torch.nn.Module) -> None:
    """Second factors that are not zero, where the first ones would have no gradient."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if "lora_B" in name:
                weight.copy_(0.05 * torch.randn(weight.shape, generator=generator))


@torch.no_grad()
def logits(policy: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    return policy.eval()(input_ids=ids).logits.float()


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return ((one - other).norm() / other.norm()).item()


def refusal(folder: str, **options: Any) -> str:
    try:
        load_policy(folder, backend="unsloth", **options)
    except ValueError as error:
        return str(error)
    return "not refused"


def main(out: Path) -> dict[str, Any]:
    tiny = str(out / "tiny")
    for part in tiny_policy(seed=1, hidden_size=64):
        part.save_pretrained(tiny)
    policy, tokenizer = load_policy(tiny, backend="unsloth", use_gradient_checkpointing=False, **ASKED)
    assert active_backend() == "unsloth"
    plain, _ = load_policy(tiny, **ASKED)
    ours, theirs = policy.state_dict(), plain.state_dict()
    config = policy.peft_config["default"]
    seen: dict[str, Any] = {
        "differ": sorted(ours.keys() ^ theirs.keys())
        + [name for name in ours.keys() & theirs.keys() if not torch.equal(ours[name], theirs[name])],
        "trained": len([w for w in policy.parameters() if w.requires_grad]),
        "four_bit": len([w for w in policy.parameters() if w.dtype == torch.uint8]),
        "adapter": [config.r, config.lora_alpha, config.lora_dropout, config.bias, sorted(config.target_modules)],
        "pad": [tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.padding_side, policy.config.pad_token_id],
        "training": policy.training,
        "checkpointing": policy.is_gradient_checkpointing,
    }

    ids = torch.randint(4, 100, (2, 12), generator=torch.Generator().manual_seed(0))
    wake(policy)
    wake(plain)
    before = gradients(policy, ids)
    policy.eval()
    with torch.no_grad():
        policy.generate(input_ids=ids, max_new_tokens=4, do_sample=False)
    policy.train()
    after = gradients(policy, ids)
    # The same policy with its 4-bit weights unpacked is the truth
    save_policy(policy, tokenizer, out, ["model", "adapter"])
    unpacked, _ = load_policy(tiny, dtype="float32", lora_r=4, random_state=7)
    merged, _ = load_policy(out / "model", dtype="float32", lora_r=0)
    wake(unpacked)
    from bitsandbytes.functional import dequantize_4bit

    with torch.no_grad():
        for name, module in policy.named_modules():
            state = getattr(getattr(module, "weight", None), "quant_state", None)
            if state is not None:
                unpacked.get_submodule(name).weight.copy_(dequantize_4bit(module.weight.data, state))
    true = gradients(unpacked, ids)
    seen["gradients"] = [apart(before, true), apart(after, true), apart(before, gradients(plain, ids))]
    seen["merged"] = apart(logits(merged, ids), logits(policy, ids))
    with policy.disable_adapter():
        seen["adapter_matters"] = apart(logits(policy, ids), logits(merged, ids))

    seen["default_checkpointing"] = load_policy(tiny, backend="unsloth", **ASKED)[0].is_gradient_checkpointing
    seen["types"] = [str(load_policy(tiny, backend="unsloth", dtype=name)[0].dtype) for name in ("auto", "bfloat16")]
    torch.manual_seed(3)
    free = load_policy(tiny, backend="unsloth", lora_r=4)[0].state_dict()
    torch.manual_seed(3)
    again = load_policy(tiny, backend="unsloth", lora_r=4)[0].state_dict()
    name = next(name for name in free if "lora_A" in name)
    seen["seeded"] = torch.equal(free[name], again[name])
    seen["refused"] = {
        "fast_inference": refusal(tiny, fast_inference=True),
        "max_seq_length": refusal(tiny, max_seq_length=10**6),
        "use_gradient_checkpointing": refusal(tiny, use_gradient_checkpointing="yes"),
        "gpu_memory_utilization": refusal(tiny, gpu_memory_utilization=0.5),
        "device": refusal(tiny, device="cuda:0"),
        "dtype": refusal(tiny, dtype="float16"),
    }
    try:
        save_policy(policy, tokenizer, out, ["gguf"])
    except ValueError as error:
        seen["refused"]["gguf"] = str(error)
    return seen


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
