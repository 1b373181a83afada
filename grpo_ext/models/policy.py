"""Load a policy to train: a transformers model with a LoRA adapter, in 16 or 32 bit or over 4-bit weights."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase

from grpo_ext.models.resolve import resolve_model
from grpo_ext.models.tokenizer import load_tokenizer

DTYPES: dict[str, torch.dtype | str] = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    "auto": "auto",
}


def load_policy(
    model: str | os.PathLike[str],
    *,
    dtype: str = "bfloat16",
    load_in_4bit: bool = False,
    lora_r: int | None = 16,
    lora_alpha: int | None = None,
    lora_dropout: float = 0.0,
    lora_target_modules: str | Sequence[str] = "all-linear",
    revision: str | None = None,
    trust_remote_code: bool = False,
    device: str | torch.device | None = None,
    chat_template: str | None = None,
) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]:
    """Load a causal language model, put a LoRA adapter on it, and return it with a tokenizer fit for rollouts.

    Both can be handed to TRL's trainers as they are. With `beta != 0` TRL copies the adapter of a `PeftModel` into a
    second, frozen one called "ref" when the trainer is made, so the reference policy is the policy as it was at that
    moment: an adapter that was warmed up before is part of the reference.

    Args:
        model: folder, hub name, or `HuggingFaceTB/SmolLM2-135M-Instruct`, which is also found offline
            (`resolve_model`).
        dtype: `"bfloat16"`, `"float16"`, `"float32"`, or `"auto"` for the type the weights were saved in. Adapter
            weights are kept in float32, as peft does. With `load_in_4bit` it is the type of the computation.
        load_in_4bit: hold the base weights in 4-bit NormalFloat (NF4, double quantisation; QLoRA, arXiv:2305.14314,
            section 3) through bitsandbytes, on a GPU or a CPU.
        lora_r: rank of the adapter; 0 or None trains all weights.
        lora_alpha: numerator of the adapter's scale alpha / r; None means 2 * lora_r, a scale of 2 at every rank.
        lora_dropout: dropout before the adapter; 0 keeps training and rollout log-probabilities equal.
        lora_target_modules: module names, or `"all-linear"` for every linear layer but the output head.
        revision: branch, tag or commit on the hub.
        trust_remote_code: whether code that comes with the model may run.
        device: where to put the model; None means the first GPU, or the CPU if there is none.
        chat_template: template to use in place of the tokenizer's own.

    Returns:
        The model in training mode and the tokenizer: padding on the left, with a pad token other than the end token
        wherever the vocabulary has a free one.

    Raises:
        OSError: if the model or its tokenizer cannot be found.
        ValueError: for an unknown dtype, a negative rank, or 4-bit weights without an adapter.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}, but must be one of {', '.join(map(repr, DTYPES))}.")
    rank = lora_r or 0
    if rank < 0:
        raise ValueError(f"lora_r is {lora_r}, but a rank is positive, and 0 or None trains all weights.")
    if load_in_4bit and not rank:
        raise ValueError("load_in_4bit=True needs an adapter, because 4-bit weights cannot be trained; set lora_r.")

    path = resolve_model(model)
    tokenizer = load_tokenizer(
        path, revision=revision, trust_remote_code=trust_remote_code, chat_template=chat_template
    )
    network = _load_weights(path, dtype, load_in_4bit, revision, trust_remote_code, device)
    _agree_on_tokens(network, tokenizer)
    if rank:
        network = add_lora(network, rank, lora_alpha, lora_dropout, lora_target_modules)
    return network.train(), tokenizer


def add_lora(
    model: PreTrainedModel,
    lora_r: int,
    lora_alpha: int | None = None,
    lora_dropout: float = 0.0,
    lora_target_modules: str | Sequence[str] = "all-linear",
) -> PeftModel:
    """Put a LoRA adapter on a model; arguments as for `load_policy`."""
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
    place = device if device is not None else ("cuda:0" if torch.cuda.is_available() else "cpu")
    options = {"dtype": DTYPES[dtype], "device_map": {"": place}}
    if load_in_4bit:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16 if dtype == "auto" else DTYPES[dtype],
        )
    try:
        network = AutoModelForCausalLM.from_pretrained(
            path, revision=revision, trust_remote_code=trust_remote_code, **options
        )
    except OSError as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise OSError(f"no model could be loaded from {path!r}: {reason}") from error
    if load_in_4bit:
        keep_4bit_differentiable(network)
    return network


def keep_4bit_differentiable(model: torch.nn.Module) -> int:
    """Keep bitsandbytes from repacking 4-bit weights on the CPU, and return how many layers that concerned.

    On a CPU with AVX512-BF16 instructions the first forward in evaluation mode, that is the first rollout, repacks
    every 4-bit weight in place for a faster kernel. That kernel has no backward: from then on the gradient through
    the layer is lost while the loss stays right.
    """
    import bitsandbytes

    layers = [module for module in model.modules() if isinstance(module, bitsandbytes.nn.Linear4bit)]
    for layer in layers:
        layer.support_avx512bf16_for_cpu = False
    return len(layers)


def _agree_on_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give the model the tokenizer's pad token, and have generation stop at the tokenizer's end token."""
    model.config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    ends = model.generation_config.eos_token_id
    ends = list(ends) if isinstance(ends, (list, tuple)) else [ends]
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in ends:
        ends = [tokenizer.eos_token_id, *(end for end in ends if end is not None)]
        model.generation_config.eos_token_id = ends if len(ends) > 1 else ends[0]
