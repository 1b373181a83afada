"""A run folder as a recipe leaves it, made without training, with everything in it that must not be uploaded."""

import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from fake_hub import OWNER, TOKEN
from grpo_ext.hub.push import Target
from grpo_ext.models.policy import add_lora
from grpo_ext.models.tiny import tiny_tokenizer
from grpo_ext.presets import PRESETS

RANK = 4
BASE = "someone/tiny-base"
# Whose machine it is
USER = "zebulon_q"
HOST = "kitchen-machine-7"


EXPECTED = {
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "chat_template.jinja",
    "learning_curve.png",
    "tokenizer.json",
    "tokenizer_config.json",
}
REPO = f"{OWNER}/first-try"


def target(**fields: Any) -> Target:
    return Target(**{"token": TOKEN, "attempts": 3, "first_wait": 1.0, "silence": 20.0, **fields})


def prepared(run: Path) -> dict[str, bytes]:
    """What lies ready, by name, without the state."""
    return {path.name: path.read_bytes() for path in (run / "to_push").iterdir() if path.name != "push.json"}


def adapted(base: Path, seed: int = 5) -> PeftModel:
    """The base with an adapter that changes what it says."""
    policy = add_lora(AutoModelForCausalLM.from_pretrained(base), RANK)
    draw = torch.Generator().manual_seed(seed)
    for name, weight in policy.named_parameters():
        if "lora_" in name:
            weight.data = torch.randn(weight.shape, generator=draw) * 0.2
    return policy.eval()


def summary_of(folder: Path, base: Path | str, **more: Any) -> dict[str, Any]:
    sides = {
        "before": {
            "accuracy": 0.25,
            "accuracy_interval": [0.14, 0.36],
            "accuracy_lenient": 0.3125,
            "accuracy_lenient_interval": [0.2, 0.42],
            "mean_length": 20.0,
            "problems": 64,
        },
        "after": {
            "accuracy": 0.5,
            "accuracy_interval": [0.39, 0.61],
            "accuracy_lenient": 0.5625,
            "accuracy_lenient_interval": [0.44, 0.68],
            "mean_length": 18.0,
            "problems": 64,
        },
    }
    return {
        **sides,
        "evaluations": {str(more.get("dataset", "gsm8k")): sides},
        "steps": 12,
        "model": str(base),
        "dataset": "gsm8k",
        "interrupted": False,
        "command": f"python -m grpo_ext.recipes.gsm8k --preset deepseekmath --model_name_or_path {base} "
        f"--output_dir {folder} --push_to_hub --hub_token {TOKEN} --hub_model_id=first-try --learning_rate 1e-6",
        "recipe": {
            "preset": "deepseekmath",
            "dtype": "float32",
            "lora_r": RANK,
            "answer_format": "hash",
            "reward_funcs": ["correct_strict"],
        },
        "config": {**PRESETS["deepseekmath"], "beta": 0.01, "output_dir": str(folder)},
        "versions": {"grpo-ext": "0.1.0", "trl": "1.16.0"},
        "python": "3.11.7",
        "seconds": 300.0,
        **more,
    }


def finished_run(folder: Path, base: Path, **more: Any) -> Path:
    weights = folder / "adapter"
    policy, tokenizer = adapted(base), tiny_tokenizer()
    policy.save_pretrained(weights)
    tokenizer.save_pretrained(weights)
    config = json.loads((weights / "tokenizer_config.json").read_text())
    config |= {"name_or_path": str(base), "vocab_file": str(base / "vocab.txt")}
    (weights / "tokenizer_config.json").write_text(json.dumps(config))
    torch.save({"hub_token": TOKEN}, weights / "training_args.bin")
    torch.save({"state": {}}, weights / "optimizer.pt")
    (weights / "notes.txt").write_text(f"with {TOKEN} on {folder}")
    rows = [{"step": step, "reward": 0.1 * step, "completions/mean_length": 20.0 - step} for step in range(1, 13)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "summary.json").write_text(json.dumps(summary_of(folder, base, **more)))
    return folder
