"""A policy through Unsloth's `FastLanguageModel`, on its GPU or its CPU back end.

Unsloth changes what it cannot do instead of refusing it: another type, no quantisation, no vLLM. What comes back is
therefore read and compared with what was asked for.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from grpo_ext.models.policy import agree_on_tokens, first_gpu, keep_4bit_differentiable
from grpo_ext.rollouts.vllm.adapters import engine_rank
from grpo_ext.trust import opened, refuse_pickles

# What Unsloth takes for `use_gradient_checkpointing`; None stands for the first.
CHECKPOINTING = ("unsloth", True, False)
UTILIZATION = 0.5
SEEDS = 2**31


def load_unsloth(
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
    max_seq_length: int | None,
    use_gradient_checkpointing: bool | str | None,
    fast_inference: bool,
    gpu_memory_utilization: float | None,
    max_lora_rank: int | None,
    revision: str | None,
    trust_remote_code: bool,
    device: str | torch.device | None,
) -> PeftModel:
    """The policy with its adapter; arguments as for `load_policy`.

    Raises:
        ValueError: an option that Unsloth cannot honour here.
    """
    from unsloth import FastLanguageModel

    check_tokens(tokenizer)
    place = _place(device)
    on_cpu = place == "cpu"
    checkpointing = CHECKPOINTING[0] if use_gradient_checkpointing is None else use_gradient_checkpointing
    if checkpointing not in CHECKPOINTING:
        raise ValueError(
            f"use_gradient_checkpointing is {checkpointing!r}, but Unsloth takes 'unsloth', True or False."
        )
    check_engine(fast_inference, gpu_memory_utilization, max_lora_rank, lora_r, on_cpu, revision, trust_remote_code)
    config = opened(AutoConfig, path, "model", revision=revision, trust_remote_code=trust_remote_code)
    refuse_pickles(path, "model")
    length = _length(config, max_seq_length)
    number = (config.dtype or torch.float32) if dtype == "auto" else getattr(torch, dtype)
    options: dict[str, Any] = {
        "max_seq_length": length,
        "dtype": number,
        "load_in_4bit": load_in_4bit,
        "revision": revision,
        "trust_remote_code": trust_remote_code,
        "use_gradient_checkpointing": checkpointing,
        # Otherwise a name is exchanged for one of Unsloth's own uploads, whose 4-bit weights are others
        "use_exact_model_name": True,
        **({} if on_cpu else {"device_map": {"": place}}),
        **(_engine(gpu_memory_utilization, max_lora_rank, lora_r) if fast_inference else {}),
    }
    # Unsloth's tokenizer stays with its model: it turns that one's padding side while it trains
    network, _ = FastLanguageModel.from_pretrained(path, **options)
    check_loaded(network, number, load_in_4bit, fast_inference)
    agree_on_tokens(network, tokenizer)
    modules = linear_names(network) if lora_target_modules == "all-linear" else lora_target_modules
    policy = FastLanguageModel.get_peft_model(
        network,
        r=lora_r,
        target_modules=modules if isinstance(modules, str) else list(modules),
        lora_alpha=lora_alpha,
        lora_dropout=lora_dropout,
        bias="none",
        use_gradient_checkpointing=checkpointing,
        # It always seeds the generators, so a seed that was set by the caller must decide which one
        random_state=int(torch.randint(SEEDS, ())) if random_state is None else random_state,
        max_seq_length=length,
    )
    _check_adapter(policy, lora_r, lora_alpha, lora_dropout)
    return policy


def linear_names(model: PreTrainedModel) -> list[str]:
    """Last names of a model's linear layers but the output head: peft's "all-linear" in the form that Unsloth takes.

    Args:
        model: a model without an adapter.
    """
    head = model.get_output_embeddings()
    # bitsandbytes' layers are subclasses
    linear = [
        name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and module is not head
    ]
    return list(dict.fromkeys(name.rpartition(".")[2] for name in linear))


def on_cpu_back_end() -> bool:
    """Whether the Unsloth of this process is its CPU back end, which it chooses when it is imported."""
    import unsloth

    return getattr(unsloth, "DEVICE_TYPE", None) == "cpu"


def _place(device: str | torch.device | None) -> str:
    """Where the model goes."""
    cpu = on_cpu_back_end()
    place = ("cpu" if cpu else first_gpu()) if device is None else str(device)
    if cpu != place.startswith("cpu"):
        raise ValueError(
            f"device is {place!r}, but Unsloth {'found no GPU' if cpu else 'takes the GPU that it found'} when it was "
            f"imported; {'leave device out' if cpu else 'set CUDA_VISIBLE_DEVICES= (empty) to train on the CPU'}."
        )
    return place


def check_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a pad token that ends completions.

    Args:
        tokenizer: of the policy.

    Raises:
        ValueError: its pad token is its end token.
    """
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise ValueError(
            f"the tokenizer pads with its end token {tokenizer.eos_token!r}, and Unsloth's loss rebuilds the "
            "completion mask from pad ids, so the policy would not learn to stop; add a pad token to the tokenizer."
        )


def check_engine(
    asked: bool,
    utilization: float | None,
    max_rank: int | None,
    lora_r: int,
    on_cpu: bool,
    revision: str | None,
    trust_remote_code: bool,
) -> None:
    """Refuse what vLLM inside Unsloth cannot do.

    Args:
        asked: `fast_inference`, whether there is to be such an engine.
        utilization: share of the GPU's memory that it may take; None leaves it to us.
        max_rank: largest rank of an adapter that it takes; None leaves it to us.
        lora_r: rank of the policy's adapter.
        on_cpu: whether this process has Unsloth's CPU back end.
        revision: branch, tag or commit of the model.
        trust_remote_code: whether code that comes with the model may run.

    Raises:
        ValueError: something is asked for that the engine cannot do, or of an engine that is not asked for.
    """
    if not asked:
        engine: dict[str, Any] = {"gpu_memory_utilization": utilization, "max_lora_rank": max_rank}
        for name, value in engine.items():
            if value is not None:
                raise ValueError(f"{name} is {value}, but it is of the engine that fast_inference=True would start.")
        return
    if on_cpu:
        raise ValueError(
            "fast_inference=True needs a GPU, where vLLM shares the policy's weights; on a CPU set use_vllm=True and "
            "vllm_sync='adapter' in the config, which start vLLM's CPU engine."
        )
    if importlib.util.find_spec("vllm") is None:
        raise ValueError(
            "fast_inference=True needs vLLM, which is not installed; `grpo-ext doctor --vllm` says which."
        )
    if utilization is not None and not 0 < utilization <= 1:
        raise ValueError(f"gpu_memory_utilization is {utilization}, but it is a share, above 0 and at most 1.")
    engine_rank(lora_r)
    if max_rank is not None and lora_r > max_rank:
        raise ValueError(f"lora_r is {lora_r}, but max_lora_rank is {max_rank}; raise it to {engine_rank(lora_r)}.")
    for name, value in (("revision", revision), ("trust_remote_code", trust_remote_code or None)):
        if value is not None:
            raise ValueError(
                f"{name} is {value!r}, but vLLM under fast_inference=True ignores it; leave one of them out."
            )


def _engine(utilization: float | None, max_rank: int | None, lora_r: int) -> dict[str, Any]:
    """What Unsloth is told about vLLM inside it."""
    return {
        "fast_inference": True,
        "gpu_memory_utilization": UTILIZATION if utilization is None else utilization,
        "max_lora_rank": max_rank or engine_rank(lora_r),
    }


def _length(config: Any, asked: int | None) -> int:
    """The longest sequence, at most the model's window: beyond it Unsloth would rescale the positions."""
    window = getattr(config, "max_position_embeddings", None)
    if window is None:
        if asked is None:
            raise ValueError("max_seq_length is not set and the model's config names no window; set it.")
        return asked
    if asked is not None and not 0 < asked <= window:
        raise ValueError(f"max_seq_length is {asked}, but this model's window is {window}; give 1 to {window}.")
    return asked or window


def check_loaded(network: Any, number: torch.dtype, load_in_4bit: bool, fast_inference: bool) -> None:
    """Compare the model with what was asked for.

    Args:
        network: what Unsloth has loaded.
        number: type of the weights that was asked for.
        load_in_4bit: whether 4-bit weights were.
        fast_inference: whether a vLLM engine was.

    Raises:
        ValueError: it is another one.
    """
    found = network.get_input_embeddings().weight.dtype
    if found != number:
        raise ValueError(
            f"dtype {number} was asked for, but Unsloth loaded {found}, which this machine prefers; set it."
        )
    if load_in_4bit and not keep_4bit_differentiable(network):
        raise ValueError(
            "load_in_4bit=True was asked for, but Unsloth loaded weights that are not 4-bit, because bitsandbytes "
            "does not work here or the layers are too narrow for it; `grpo-ext doctor --load_in_4bit` says more."
        )
    if fast_inference and getattr(network, "vllm_engine", None) is None:
        raise ValueError("fast_inference=True was asked for, but Unsloth started no vLLM engine on this GPU.")


def _check_adapter(policy: Any, lora_r: int, lora_alpha: int, lora_dropout: float) -> None:
    if not isinstance(policy, PeftModel):
        raise ValueError(f"Unsloth returned a {type(policy).__name__} without an adapter.")
    wanted = {"r": lora_r, "lora_alpha": lora_alpha, "lora_dropout": lora_dropout, "bias": "none"}
    found = policy.peft_config["default"]
    wrong = list(_differences(wanted, found))
    if wrong:
        raise ValueError(f"Unsloth made an adapter with {', '.join(wrong)}.")


def _differences(wanted: dict[str, Any], found: Any) -> Iterator[str]:
    for name, value in wanted.items():
        if getattr(found, name) != value:
            yield f"{name}={getattr(found, name)!r} in place of {value!r}"
