"""Small random models of the families that attend over a tree."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

SMALL = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 64, "vocab_size": 50, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
SERVED: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "mistral": {"sliding_window": None},
    "gemma": {"head_dim": 16},
    "phi": {"partial_rotary_factor": 0.5},
    "phi3": {"sliding_window": None},
    "granite": {"logits_scaling": 4.0},
    "smollm3": {},
    "cohere": {"logit_scale": 0.5},
    "olmo2": {},
}


def make_family(family: str, **fields: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**SMALL, **SERVED[family], **fields})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa").eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return model
