"""The frozen base that vLLM holds under a policy's adapter, and the type it is held in."""

import logging
import os
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig

logger = logging.getLogger("grpo_ext")

# Endings of hub names and folders that hold a 4-bit copy of the model named before them.
QUANTISED_ENDINGS = ("-unsloth-bnb-4bit", "-bnb-4bit")


def base_name(model: Any, named: str | None) -> str:
    """Folder or hub name of the unquantised base of a policy.

    Args:
        model: policy with an adapter, not wrapped.
        named: `vllm_base_model`, or None to find it.

    Returns:
        What vLLM is started with.

    Raises:
        ValueError: the policy does not come from a folder or hub name, or its checkpoint is 4-bit and the one that
            was quantised is not found.
    """
    if named is not None:
        return named
    path = str(model.get_base_model().name_or_path)
    if not path:
        raise ValueError(
            "The policy was not loaded from a folder or hub name that vLLM could load, too; save its base with "
            "save_pretrained and name the folder in `vllm_base_model`."
        )
    if not _is_4bit_on_disk(path):
        return path
    for ending in QUANTISED_ENDINGS:
        before = path.removesuffix(ending)
        if before != path and _is_there(before):
            logger.info("vLLM holds %s, the 16-bit base of the policy's %s.", before, path)
            return before
    raise ValueError(
        f"The policy comes from the 4-bit checkpoint {path!r}, and the 16-bit model that it was made of was not "
        "found; name its folder or hub name in `vllm_base_model`."
    )


def _is_4bit_on_disk(path: str) -> bool:
    # A policy quantised while it was loaded says so in its own config, but not in the file
    fields, _ = PretrainedConfig.get_config_dict(path)
    return (fields.get("quantization_config") or {}).get("quant_method") == "bitsandbytes"


def _is_there(path: str) -> bool:
    try:
        fields, _ = PretrainedConfig.get_config_dict(path)
    except OSError:
        return False
    return bool(fields)


def engine_dtype(model: Any, bf16: bool = False, fp16: bool = False) -> torch.dtype:
    """Type in which vLLM computes with a policy, and in which its adapter is written.

    Args:
        model: policy, not wrapped.
        bf16: whether training computes in bfloat16 whatever the weights are.
        fp16: likewise float16.

    Returns:
        The type of training's own computation.
    """
    if bf16 or fp16:
        return torch.bfloat16 if bf16 else torch.float16
    kind = model.get_base_model().dtype
    return kind if kind in (torch.bfloat16, torch.float16) else torch.float32


def same_model(one: str, other: str) -> bool:
    """Whether two folders or hub names mean the same model, as far as their names tell.

    Folders differ from machine to machine, so their last parts are compared.

    Args:
        one: folder or hub name.
        other: folder or hub name.
    """
    if one == other or os.path.realpath(one) == os.path.realpath(other):
        return True
    return _label(one) == _label(other)


def _label(name: str) -> str:
    """The part of a folder or hub name that is the same on all machines, in small letters."""
    parts = Path(name).parts
    if "snapshots" in parts[:-1]:  # hub cache: models--OWNER--NAME/snapshots/COMMIT
        return parts[parts.index("snapshots") - 1].rpartition("--")[2].lower()
    return Path(name).name.lower()
