"""A command line of the evaluation recipe for tests, over a tiny model."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from grpo_ext.models import tiny_policy
from grpo_ext.models.policy import add_lora


def save_tiny(folder: Path, seed: int = 0) -> str:
    """A random model with its tokenizer in a folder."""
    model, tokenizer = tiny_policy(seed=seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def save_adapter(base: str, folder: Path) -> str:
    """An adapter that changes what the model says."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        adapted = add_lora(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), 4)
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.3)
    adapted.save_pretrained(folder)
    return str(folder)


def words(*models: str, output: Path, **more: Any) -> list[str]:
    """The words after the command."""
    options = {
        "task": "arithmetic",
        "problems": 12,
        "samples": 4,
        "max_completion_length": 16,
        "dtype": "float32",
        "batch_size": 8,
        "resamples": 200,
        "output_dir": output,
        **more,
    }
    rest: list[str] = []
    for name, value in options.items():
        if value is True:
            rest.append(f"--{name}")
        elif value is not None:
            rest += [f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    return [*models, *rest]


def results(output: Path) -> dict[str, Any]:
    """What `results.json` says of models and differences."""
    found = json.loads((output / "results.json").read_text())
    return {"models": found["models"], "differences": found["differences"]}
