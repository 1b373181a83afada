"""What a run writes down about itself: versions, hardware, config, and its log read back."""

import importlib.metadata
import json
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from grpo_ext import __version__
from grpo_ext.doctor.environment import machine
from grpo_ext.files import write_text

PACKAGES = ("torch", "transformers", "trl", "peft", "datasets", "accelerate")


def versions() -> dict[str, str]:
    """Versions of the packages that a result depends on.

    Returns:
        Name to version.
    """
    return {"grpo-ext": __version__} | {name: importlib.metadata.version(name) for name in PACKAGES}


def hardware() -> dict[str, Any]:
    """What a run was computed on.

    Returns:
        `cpu` (name), `cores`, `memory` in bytes, and `gpus`, each with `name` and `memory`.
    """
    import torch

    gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return {**machine(), "gpus": [{"name": gpu.name, "memory": gpu.total_memory} for gpu in gpus]}


def changed_fields(config: Any) -> dict[str, Any]:
    """The fields of a config that differ from its class's defaults, without tokens.

    Args:
        config: an instance of a dataclass.

    Returns:
        Name to value; objects and empty lists, which transformers puts in the place of None, are left out.
    """
    found = {}
    for field in fields(config):
        default = field.default if field.default_factory is MISSING else field.default_factory()
        value = getattr(config, field.name)
        plain = isinstance(value, str | int | float | list | tuple | dict) and value not in ([], {}, ())
        if field.init and plain and value != default and not field.name.endswith("_token"):
            found[field.name] = value
    return found


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file that a reader never sees half of.

    Args:
        path: the file.
        content: what to write.
    """
    write_text(path, json.dumps(content, indent=2, default=str) + "\n")
