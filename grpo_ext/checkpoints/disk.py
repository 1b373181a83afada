"""A disk without room: which errors say so, and which files are cut short."""

import re
import shutil
import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

# torch's own writer: a part of the file is missing
_WRITER = ("inline_container.cc", "PytorchStreamWriter")
# Its files, which end in a directory of what is in them
_ARCHIVES = (".pt", ".pth")
_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


def why_unwritten(error: Exception) -> str | None:
    """Why files could not be written, or None for an error of another kind.

    Args:
        error: raised while a checkpoint was saved.
    """
    match error:
        case OSError():
            return error.strerror or str(error)
        case SafetensorError():
            found = re.search(r"I/O error: (.*?)(?: \(os error \d+\))?$", str(error))
            return found[1] if found else str(error)
        case RuntimeError() if any(part in str(error) for part in _WRITER):
            return "torch wrote a part of a file"
    return None


def cut_short(folder: Path) -> str | None:
    """The first file of a checkpoint that ends too early, as the end of a sentence, or None.

    Args:
        folder: with the files of safetensors and torch below it.
    """
    for path in sorted(folder.rglob("*")):
        if (path.suffix == ".safetensors" and not _is_covered(path)) or (
            path.suffix in _ARCHIVES and not zipfile.is_zipfile(path)
        ):
            return f"{path.name} is cut off after {size(path.stat().st_size)}"
    return None


def _is_covered(path: Path) -> bool:
    try:
        with safe_open(path, framework="pt"):
            return True
    except SafetensorError:
        return False


def free(folder: Path) -> int:
    """Bytes that can be written where a folder is."""
    return shutil.disk_usage(folder).free


def held(folder: Path) -> int:
    """Bytes of the files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def estimated(model: torch.nn.Module, optimizer: bool) -> int:
    """Bytes of a checkpoint: the weights that are trained, and two moments for each of them.

    Args:
        model: policy.
        optimizer: whether its state is saved too.
    """
    weights = sum(weight.numel() * weight.element_size() for weight in model.parameters() if weight.requires_grad)
    return weights * 3 if optimizer else weights


def size(number: float) -> str:
    """Bytes for a reader, as "1.5 GiB"."""
    for unit in _UNITS[:-1]:
        if number < 1024:
            return f"{number:.3g} {unit}"
        number /= 1024
    return f"{number:.3g} {_UNITS[-1]}"
