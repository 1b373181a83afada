"""The LoRA adapter of a policy as a folder that vLLM loads: a few megabytes for each sync, nothing merged."""

import atexit
import fcntl
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file

# What vLLM takes for `max_lora_rank`: it reserves room for that many rows, so the smallest that fits is best.
ENGINE_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
MEMORY = Path("/dev/shm")
PREFIX = "grpo_ext_adapters"
# File in the folder that its process holds a lock on
LOCK = "lock"
# Their start values are taken out of the base weights, so the base on disk is no longer the one under the adapter.
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class Adapter:
    """One written adapter.

    Attributes:
        name: name that no other adapter of any run has.
        number: 1, 2, ... in the order of writing; vLLM's integer id.
        path: its folder.
        size: bytes in that folder.
    """

    name: str
    number: int
    path: str
    size: int


class AdapterFolder:
    """Writes adapters under new names and removes the older ones; leaves nothing behind.

    Args:
        parent: folder to work in; None is the memory-backed `/dev/shm`, or the temporary folder without one.
        dtype: type of the written weights, which is the engine's: it would round to it on loading.
    """

    def __init__(self, parent: str | None = None, dtype: torch.dtype = torch.bfloat16) -> None:
        self.dtype = dtype
        self._number = 0
        self._owner = os.getpid()
        place = Path(parent) if parent is not None else default_parent()
        if not place.is_dir():
            raise OSError(f"`vllm_adapter_dir` is {str(place)!r}, which is no folder; make it on all machines first.")
        _remove_orphans(place)
        made = Path(tempfile.mkdtemp(prefix=f".{PREFIX}-", dir=place))
        # Free when this process has ended. Its number would not tell: another container has others under the same name
        self._lock = (made / LOCK).open("w")
        with suppress(OSError):  # where the file system has no locks, what is left stays
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        # mkdtemp makes it private; a server may run as somebody else
        made.chmod(0o755)
        self.path = made.rename(
            place / f"{PREFIX}-{socket.gethostname()}-{self._owner}-{made.name.rpartition('-')[2]}"
        )
        atexit.register(self.close)

    def write(self, model: PeftModel) -> Adapter:
        """Write the active adapter; the folder appears under its name only when it is complete.

        Args:
            model: policy for which `unservable` returns None.

        Returns:
            The written adapter; those before the last one are removed.
        """
        self._number += 1
        name = f"{self.path.name}-{self._number}"
        work, target = self.path / f"partial-{self._number}", self.path / name
        work.mkdir()
        active = model.active_adapter
        # Embeddings are asked for by name in `unservable`; "auto" would look for the base on the hub
        weights = get_peft_model_state_dict(model, adapter_name=active, save_embedding_layers=False)
        save_file(
            {key: tensor.detach().to("cpu", self.dtype).contiguous() for key, tensor in weights.items()},
            work / "adapter_model.safetensors",
            metadata={"format": "pt"},
        )
        (work / "adapter_config.json").write_text(json.dumps(_config(model.peft_config[active])))
        work.rename(target)
        for older in range(1, self._number - 1):
            shutil.rmtree(self.path / f"{self.path.name}-{older}", ignore_errors=True)
        size = sum(file.stat().st_size for file in target.iterdir())
        return Adapter(name, self._number, str(target), size)

    def close(self) -> None:
        """Remove everything that was written."""
        # A forked child inherits the exit handler, but not the folder
        if os.getpid() == self._owner:
            self._lock.close()
            shutil.rmtree(self.path, ignore_errors=True)
            atexit.unregister(self.close)


def default_parent() -> Path:
    """The memory-backed folder of this machine, or its temporary folder."""
    return MEMORY if MEMORY.is_dir() and os.access(MEMORY, os.W_OK) else Path(tempfile.gettempdir())


def _remove_orphans(place: Path) -> None:
    """Remove what killed processes of this machine have left in a folder."""
    for folder in place.glob(f"{PREFIX}-{socket.gethostname()}-*-*"):
        try:
            with (folder / LOCK).open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            # Its process runs, or is somebody else's
            continue


def _config(config: LoraConfig) -> dict[str, Any]:
    """The part of the adapter's config that vLLM reads."""
    modules = config.target_modules
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": config.base_model_name_or_path,
        "r": config.r,
        "lora_alpha": config.lora_alpha,
        "use_rslora": config.use_rslora,
        "target_modules": modules if isinstance(modules, str) else sorted(modules or []),
        "bias": "none",
        "lora_dropout": 0.0,
        "inference_mode": True,
    }


def engine_rank(rank: int) -> int:
    """The smallest `max_lora_rank` of vLLM that an adapter fits in.

    Args:
        rank: r of the adapter.

    Returns:
        One of `ENGINE_RANKS`.

    Raises:
        ValueError: no engine is that wide.
    """
    for allowed in ENGINE_RANKS:
        if rank <= allowed:
            return allowed
    raise ValueError(
        f"The adapter has rank {rank}, and vLLM serves ranks up to {ENGINE_RANKS[-1]}; use a smaller `lora_r`."
    )


def unservable(model: Any) -> str | None:
    """Why vLLM cannot serve a policy as its frozen base with an adapter, as the end of a sentence, or None.

    Args:
        model: policy, not wrapped.
    """
    if not isinstance(model, PeftModel):
        return "has no LoRA adapter: all its weights are trained"
    if len(model.active_adapters) != 1:
        return f"has {len(model.active_adapters)} active adapters, and a request carries one"
    config = model.peft_config[model.active_adapter]
    if not isinstance(config, LoraConfig):
        return f"has an adapter of type {config.peft_type.value}, and vLLM serves LoRA alone"
    return next(_refusals(config), None) or _trained_beside(model)


def _refusals(config: LoraConfig) -> Iterator[str]:
    # Fields that some versions of peft do not have are read with a default
    named = {
        "use_dora": "is a DoRA adapter",
        "modules_to_save": "trains whole modules beside the adapter (modules_to_save)",
        "trainable_token_indices": "trains rows of the embedding (trainable_token_indices)",
        "layer_replication": "replicates layers",
        "target_parameters": "adapts bare parameters (target_parameters)",
        "alora_invocation_tokens": "is an activated LoRA",
        "use_qalora": "is a QALoRA adapter",
        "lora_bias": "has an adapter with a bias",
        "rank_pattern": "has ranks that differ by layer (rank_pattern)",
        "alpha_pattern": "has scales that differ by layer (alpha_pattern)",
    }
    for name, text in named.items():
        if getattr(config, name, None):
            yield f"{text}, which vLLM does not serve"
    if config.bias != "none":
        yield f"trains biases (bias={config.bias!r}), which vLLM does not serve"
    start = config.init_lora_weights
    if isinstance(start, str) and start.lower().startswith(CHANGES_BASE):
        yield f"began by changing the base (init_lora_weights={start!r}), and vLLM holds the unchanged one"


def _trained_beside(model: PeftModel) -> str | None:
    parts = (".lora_A.", ".lora_B.", ".lora_embedding_")
    for name, weight in model.named_parameters():
        if weight.requires_grad and not any(part in name for part in parts):
            return f"also trains {name}, which no adapter carries"
    return None
