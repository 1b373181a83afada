"""`load_policy`: one call for every back end, with the same arguments meaning the same thing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from grpo_ext.backends import import_backend

# Unsloth has to be imported before transformers and peft, so nothing that pulls them in is imported up here.
if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Options that one back end alone has, with the value that means "nothing was said", and what to use on the other one.
UNSLOTH_ONLY: dict[str, tuple[Any, str]] = {
    "max_seq_length": (None, "the config's `max_completion_length` and `vllm_max_model_length` bound lengths there"),
    "use_gradient_checkpointing": (None, "the config's `gradient_checkpointing` says it there"),
    "fast_inference": (False, "the config's `use_vllm` with `vllm_sync='adapter'` generates with vLLM there"),
    "gpu_memory_utilization": (None, "the config's `vllm_gpu_memory_utilization` says it there"),
    "max_lora_rank": (None, "vLLM's own limit is chosen from `lora_r` there"),
}


def load_policy(
    model: str | os.PathLike[str],
    *,
    backend: str = "transformers",
    dtype: str = "bfloat16",
    load_in_4bit: bool = False,
    lora_r: int | None = 16,
    lora_alpha: int | None = None,
    lora_dropout: float = 0.0,
    lora_target_modules: str | Sequence[str] = "all-linear",
    random_state: int | None = None,
    max_seq_length: int | None = None,
    use_gradient_checkpointing: bool | str | None = None,
    fast_inference: bool = False,
    gpu_memory_utilization: float | None = None,
    max_lora_rank: int | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    device: str | torch.device | None = None,
    chat_template: str | None = None,
) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]:
    """Load a causal language model, put a LoRA adapter on it, and return it with a tokenizer fit for rollouts.

    Both can be handed to `GRPOExtTrainer` as they are. With `beta != 0` TRL copies the adapter of a `PeftModel` into a
    second, frozen one called "ref" when the trainer is made, so the reference policy is the policy as it was at that
    moment: an adapter that was warmed up before is part of the reference.

    Args:
        model: folder, hub name, or `HuggingFaceTB/SmolLM2-135M-Instruct`, which is also found offline
            (`resolve_model`).
        backend: `"transformers"` (with peft) or `"unsloth"`. Unsloth is imported here unless it already is, which
            must be before the first import of a trainer or config class.
        dtype: `"bfloat16"`, `"float16"`, `"float32"`, or `"auto"` for the type the weights were saved in. Adapter
            weights are kept in float32, as peft does. With `load_in_4bit` it is the type of the computation.
        load_in_4bit: hold the base weights in 4-bit NormalFloat (NF4, double quantisation; QLoRA, arXiv:2305.14314,
            section 3) through bitsandbytes, on a GPU or a CPU.
        lora_r: rank of the adapter; 0 or None trains all weights.
        lora_alpha: numerator of the adapter's scale alpha / r; None means 2 * lora_r, a scale of 2 at every rank.
        lora_dropout: dropout before the adapter; 0 keeps training and rollout log-probabilities equal.
        lora_target_modules: module names, or `"all-linear"` for every linear layer but the output head.
        random_state: seed of the adapter's start values; None draws them from the global generator.
        max_seq_length: Unsloth only; longest sequence in tokens, None means the model's own window.
        use_gradient_checkpointing: Unsloth only; `"unsloth"`, True or False, None means `"unsloth"`.
        fast_inference: Unsloth on a GPU only; a vLLM engine that shares the policy's weights.
        gpu_memory_utilization: share of the GPU's memory for that engine, None means 0.5.
        max_lora_rank: widest adapter of that engine, None means the smallest that fits `lora_r`.
        revision: branch, tag or commit on the hub.
        trust_remote_code: whether code that comes with the model may run.
        device: where to put the model; None means the first GPU, or the CPU if there is none.
        chat_template: template to use in place of the tokenizer's own.

    Returns:
        The model in training mode and the tokenizer: padding on the left, with a pad token other than the end token
        wherever the vocabulary has a free one.

    Raises:
        OSError: if the model or its tokenizer cannot be found.
        ValueError: for an unknown dtype or back end, a negative rank, 4-bit weights without an adapter, or an option
            that the back end cannot honour.
        ImportError: if Unsloth is missing, or imported too late.
    """
    options: dict[str, Any] = {
        "max_seq_length": max_seq_length,
        "use_gradient_checkpointing": use_gradient_checkpointing,
        "fast_inference": fast_inference,
        "gpu_memory_utilization": gpu_memory_utilization,
        "max_lora_rank": max_lora_rank,
    }
    rank = lora_r or 0
    _check(backend, rank, load_in_4bit, options)
    import_backend(backend)

    from grpo_ext.models.policy import DTYPES, load_transformers
    from grpo_ext.models.resolve import resolve_model
    from grpo_ext.models.tokenizer import load_tokenizer

    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}, but must be one of {', '.join(map(repr, DTYPES))}.")
    path = resolve_model(model)
    tokenizer = load_tokenizer(
        path, revision=revision, trust_remote_code=trust_remote_code, chat_template=chat_template
    )
    shared: dict[str, Any] = {
        "dtype": dtype,
        "load_in_4bit": load_in_4bit,
        "lora_r": rank,
        "lora_alpha": 2 * rank if lora_alpha is None else lora_alpha,
        "lora_dropout": lora_dropout,
        "lora_target_modules": lora_target_modules,
        "random_state": random_state,
        "revision": revision,
        "trust_remote_code": trust_remote_code,
        "device": device,
    }
    if backend == "unsloth":
        from grpo_ext.models.unsloth import load_unsloth

        return load_unsloth(path, tokenizer, **shared, **options).train(), tokenizer
    return load_transformers(path, tokenizer, **shared).train(), tokenizer


def _check(backend: str, rank: int, load_in_4bit: bool, options: dict[str, Any]) -> None:
    """Refuse what can be refused before anything heavy is imported."""
    if rank < 0:
        raise ValueError(f"lora_r is {rank}, but a rank is positive, and 0 or None trains all weights.")
    if load_in_4bit and not rank:
        raise ValueError("load_in_4bit=True needs an adapter, because 4-bit weights cannot be trained; set lora_r.")
    for name, (unsaid, instead) in UNSLOTH_ONLY.items():
        if backend != "unsloth" and options[name] != unsaid:
            raise ValueError(f"{name} is {options[name]!r}, but backend {backend!r} has no such option; {instead}.")
    if backend == "unsloth" and not rank:
        raise ValueError(
            "lora_r is 0, which trains all weights, but backend 'unsloth' is for adapters; set lora_r, or use "
            "backend='transformers'."
        )
