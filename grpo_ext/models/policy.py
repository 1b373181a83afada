"""A policy from transformers and peft: a model in 16 or 32 bit or over 4-bit weights, with a LoRA adapter."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations import is_deepspeed_zero3_enabled

from grpo_ext.faults import first_line
from grpo_ext.trust import opened

DTYPES: dict[str, torch.dtype | str] = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    "auto": "auto",
}


def load_transformers(
    path: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    dtype: str,
    load_in_4bit: bool,
    lora_r: int,
    lora_alpha: int,
    lora_dropout: float,
    lora_target_modules: str | Sequence[str],
    random_state: int | None,
    revision: str | None,
    trust_remote_code: bool,
    device: str | torch.device | None,
) -> PreTrainedModel | PeftModel:
    """The policy from transformers and peft; arguments as for `load_policy`, checked there.

    Raises:
        OSError: there is no model under that name.
    """
    network = _load_weights(path, dtype, load_in_4bit, revision, trust_remote_code, device)
    agree_on_tokens(network, tokenizer)
    if not lora_r:
        return network
    with torch.random.fork_rng(enabled=random_state is not None):
        if random_state is not None:
            torch.manual_seed(random_state)
        return add_lora(network, lora_r, lora_alpha, lora_dropout, lora_target_modules)


def add_lora(
    model: PreTrainedModel,
    lora_r: int,
    lora_alpha: int | None = None,
    lora_dropout: float = 0.0,
    lora_target_modules: str | Sequence[str] = "all-linear",
) -> PeftModel:
    """Put a LoRA adapter on a model.

    Args:
        model: without an adapter; it is changed.
        lora_r: rank.
        lora_alpha: scale times rank; None: twice the rank.
        lora_dropout: share of the adapter's inputs left out in training.
        lora_target_modules: last names of the layers that get one, or peft's name for a set of them.

    Returns:
        The model with the adapter "default", which is trained.
    """
    modules = lora_target_modules if isinstance(lora_target_modules, str) else list(lora_target_modules)
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=lora_r,
        lora_alpha=2 * lora_r if lora_alpha is None else lora_alpha,
        lora_dropout=lora_dropout,
        target_modules=modules,
        bias="none",
    )
    return get_peft_model(model, config)


def _load_weights(
    path: str,
    dtype: str,
    load_in_4bit: bool,
    revision: str | None,
    trust_remote_code: bool,
    device: str | torch.device | None,
) -> PreTrainedModel:
    options: dict[str, Any] = {"dtype": DTYPES[dtype]}
    if not is_deepspeed_zero3_enabled():
        # ZeRO-3 cuts the weights up while they are loaded, and places the parts itself
        place = device if device is not None else (first_gpu() if torch.cuda.is_available() else "cpu")
        options["device_map"] = {"": place}
    if load_in_4bit:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16 if dtype == "auto" else DTYPES[dtype],
        )
    try:
        network = opened(
            AutoModelForCausalLM, path, "model", revision=revision, trust_remote_code=trust_remote_code, **options
        )
    except OSError as error:
        raise OSError(f"no model could be loaded from {path!r}: {first_line(error)}") from error
    if load_in_4bit:
        keep_4bit_differentiable(network)
    return network


def first_gpu() -> str:
    """The GPU of this process: by its rank where a launcher has started several, or the first one."""
    # A scheduler may let each process see its own GPU alone, which is the first one there
    return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % max(1, torch.cuda.device_count())}"


def keep_4bit_differentiable(model: torch.nn.Module) -> int:
    """Keep bitsandbytes from repacking 4-bit weights on the CPU.

    On a CPU with AVX512-BF16 instructions the first forward in evaluation mode, that is the first rollout, repacks
    every 4-bit weight in place for a faster kernel. That kernel has no backward: from then on the gradient through
    the layer is lost while the loss stays right.

    Args:
        model: before its first forward.

    Returns:
        Number of 4-bit layers.
    """
    import bitsandbytes

    layers = [module for module in model.modules() if isinstance(module, bitsandbytes.nn.Linear4bit)]
    for layer in layers:
        layer.support_avx512bf16_for_cpu = False
    return len(layers)


def agree_on_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give the model the tokenizer's pad token, and have generation stop at the tokenizer's end token.

    Args:
        model: its configs are changed.
        tokenizer: that the policy is trained with.
    """
    model.config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    ends = model.generation_config.eos_token_id
    ends = list(ends) if isinstance(ends, (list, tuple)) else [ends]
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in ends:
        ends = [tokenizer.eos_token_id, *(end for end in ends if end is not None)]
        model.generation_config.eos_token_id = ends if len(ends) > 1 else ends[0]
