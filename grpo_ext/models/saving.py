"""A trained policy on disk: its adapter, or one model with the adapter merged in, for the tools that load it next."""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from grpo_ext.backends import active_backend

ADAPTER = "default"
GGUF_TYPE = "q8_0"


def save_policy(
    policy: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | os.PathLike[str],
    formats: Sequence[str] = ("adapter",),
    weights: dict[str, Tensor] | None = None,
) -> dict[str, Path]:
    """Write a policy with its tokenizer, one folder for each format, under the format's name.

    A folder appears under that name when it is complete, and takes the place of an earlier one then.

    Args:
        policy: as `load_policy` made it, trained.
        tokenizer: its tokenizer.
        folder: where the folders go.
        formats: any of `SAVE_FORMATS`.
        weights: all of the policy's by name, where it is sharded and holds parts of them alone.

    Returns:
        Format to folder.

    Raises:
        ValueError: there is no such format, or it cannot be written from this policy here.
        OSError: the folder cannot be written to.
    """
    check_formats(policy, formats, sharded=weights is not None)
    found = {}
    for name in dict.fromkeys(formats):
        target = Path(folder) / name
        with replaced(target) as work:
            SAVE_FORMATS[name](policy, tokenizer, work, weights)
        found[name] = target
    return found


def check_formats(policy: PreTrainedModel | PeftModel, formats: Sequence[str], sharded: bool = False) -> None:
    """Refuse what `save_policy` could not write, so that a run says so before it trains.

    Args:
        policy: what would be saved.
        formats: the formats asked for.
        sharded: whether its weights are cut up between processes.

    Raises:
        ValueError: with the format, the reason and the way out.
    """
    for name in formats:
        if name not in SAVE_FORMATS:
            raise ValueError(f"save_format is {name!r}, but must be among {', '.join(map(repr, SAVE_FORMATS))}.")
        if name == "adapter" and not isinstance(policy, PeftModel):
            raise ValueError("save_format 'adapter' needs an adapter, and all weights are trained; use 'model'.")
        whole = "adapter" if isinstance(policy, PeftModel) else "model"
        if sharded and name != whole:
            raise ValueError(f"save_format {name!r} is not made of sharded weights; use {whole!r}.")
        if name == "gguf" and not _by_unsloth():
            raise ValueError(
                "save_format 'gguf' is Unsloth's, on a GPU; elsewhere save 'merged_16bit' and convert that folder "
                f"with llama.cpp: `python convert_hf_to_gguf.py merged_16bit --outtype {GGUF_TYPE}`."
            )
        if name in ("model", "merged_16bit") and (other := _unmergeable(policy)) is not None:
            raise ValueError(
                f"save_format {name!r} adds LoRA factors to weights, and the policy {other}; use 'adapter'."
            )


@contextmanager
def replaced(target: Path) -> Iterator[Path]:
    """A new folder beside the target that takes its name when the body ends without an error.

    Args:
        target: the final name.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    new, before = work / "new", work / "before"
    new.mkdir()
    try:
        yield new
        if target.exists():
            target.rename(before)
        new.rename(target)
    finally:
        if before.exists() and not target.exists():
            before.rename(target)
        shutil.rmtree(work, ignore_errors=True)


Weights = dict[str, Tensor] | None


def _adapter(policy: PeftModel, tokenizer: PreTrainedTokenizerBase, folder: Path, weights: Weights) -> None:
    # TRL adds a frozen copy named "ref" where there is a reference policy
    policy.save_pretrained(folder, selected_adapters=[ADAPTER], state_dict=weights)
    tokenizer.save_pretrained(folder)


def _model(
    policy: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, folder: Path, weights: Weights
) -> None:
    if weights is None:
        merged(policy).save_pretrained(folder)
    else:
        # Gathered weights no longer show which of them are tied; a parameter of two names is listed under its first
        own = {name for name, _ in (*policy.named_parameters(), *policy.named_buffers())}
        policy.save_pretrained(folder, state_dict={name: weight for name, weight in weights.items() if name in own})
    tokenizer.save_pretrained(folder)


def _merged_16bit(
    policy: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, folder: Path, weights: Weights
) -> None:
    if _by_unsloth() and isinstance(policy, PeftModel):
        policy.save_pretrained_merged(str(folder), tokenizer, save_method="merged_16bit")
        return
    kept = policy.dtype if policy.dtype in (torch.bfloat16, torch.float16) else torch.bfloat16
    merged(policy, kept).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _gguf(policy: PeftModel, tokenizer: PreTrainedTokenizerBase, folder: Path, weights: Weights) -> None:
    # Unsloth writes a 16-bit model here and the files beside it, under this name with "_gguf" behind
    inner = folder / "model"
    policy.save_pretrained_gguf(str(inner), tokenizer, quantization_method=GGUF_TYPE)
    files = [path for path in folder.rglob("*.gguf") if path.is_file()]
    if not files:
        raise ValueError("Unsloth wrote no GGUF file; save 'merged_16bit' and convert it with llama.cpp.")
    for path in files:
        path.rename(folder / path.name)
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)


SAVE_FORMATS: dict[str, Callable[[Any, PreTrainedTokenizerBase, Path, Weights], None]] = {
    "adapter": _adapter,
    # In the policy's own type
    "model": _model,
    "merged_16bit": _merged_16bit,
    "gguf": _gguf,
}


@torch.no_grad()
def merged(policy: PreTrainedModel | PeftModel, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The policy as one model without adapter or quantisation, on the CPU: W + (alpha / r) B A, added in float32.

    4-bit weights are unpacked first, so the model computes what the trained policy computed, and not what the weights
    before quantisation would.

    Args:
        policy: with a LoRA adapter, or without one.
        dtype: type of its weights; None keeps the policy's.

    Returns:
        A new model; the policy is left as it is.

    Raises:
        ValueError: the adapter is of another kind than LoRA on linear layers.
    """
    if (other := _unmergeable(policy)) is not None:
        raise ValueError(f"the policy {other}, so it cannot be merged.")
    base = policy.get_base_model() if isinstance(policy, PeftModel) else policy
    number = dtype or base.dtype
    config = copy.deepcopy(base.config)
    # The one belongs to 4-bit weights, the other to training with gradient checkpointing
    config.__dict__.pop("quantization_config", None)
    config.use_cache = True
    config.dtype = number
    with torch.device("meta"):
        model = type(base)(config)
    state = {name: _weight(base, name, number) for name in model.state_dict()}
    model.load_state_dict(state, assign=True)
    model.tie_weights()
    model.generation_config = copy.deepcopy(base.generation_config)
    return model.eval()


def _weight(base: PreTrainedModel, name: str, dtype: torch.dtype) -> Tensor:
    """One tensor of the model without adapter, by its name there."""
    place, _, leaf = name.rpartition(".")
    layer = base.get_submodule(place)
    inner = layer.get_base_layer() if isinstance(layer, LoraLayer) else layer
    value = getattr(inner, leaf)
    if leaf == "weight" and getattr(value, "quant_state", None) is not None:
        import bitsandbytes

        value = bitsandbytes.functional.dequantize_4bit(value.data, value.quant_state)
    if leaf == "weight" and isinstance(layer, LoraLayer) and ADAPTER in layer.scaling:
        value = value.detach().float() + layer.get_delta_weight(ADAPTER).float()
    value = value.detach()
    return value.to("cpu", dtype if value.is_floating_point() else value.dtype).contiguous().clone()


def _unmergeable(policy: PreTrainedModel | PeftModel) -> str | None:
    """What an adapter has that W + (alpha / r) B A does not say, as the end of a sentence, or None."""
    if not isinstance(policy, PeftModel):
        return None
    parts = (".lora_A.", ".lora_B.")
    for name, weight in policy.named_parameters():
        if weight.requires_grad and not any(part in name for part in parts):
            return f"also trains {name}"
    for name, layer in policy.named_modules():
        if isinstance(layer, LoraLayer) and getattr(layer, "lora_variant", {}).get(ADAPTER) is not None:
            return f"has a variant of LoRA in {name}"
    return None


def _by_unsloth() -> bool:
    """Whether Unsloth's own calls write the model: they need its GPU back end."""
    if active_backend() != "unsloth":
        return False
    from grpo_ext.models.unsloth import on_cpu_back_end

    return not on_cpu_back_end()
