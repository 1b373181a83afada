"""The recipe with `backend: unsloth`, as a user runs it: the back end comes first, also from a YAML file."""

import json
import re
from pathlib import Path

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM

from grpo_ext.models import resolve_model, tiny_policy
from real_unsloth import ROOT, finish, start

pytestmark = pytest.mark.unsloth

YAML = """
backend: unsloth
load_in_4bit: true
dtype: float32
bf16: false
dataset: arithmetic
save_format: [adapter, model]
max_steps: 2
per_device_train_batch_size: 4
num_generations: 4
max_completion_length: 8
train_size: 16
eval_size: 4
sft_steps: 1
sft_batch_size: 4
lora_r: 4
"""


@pytest.fixture
def tiny_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny"
    for part in tiny_policy(seed=0, hidden_size=64):
        part.save_pretrained(folder)
    return folder


def test_from_a_yaml(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(YAML)
    here, out = tmp_path / "here", tmp_path / "out"
    words = [
        "--config",
        str(tmp_path / "run.yaml"),
        "--model_name_or_path",
        str(tiny_folder),
        "--output_dir",
        str(out),
    ]
    said = finish(start(here, "-m", "grpo_ext.recipes.gsm8k", *words, GRPO_EXT_CACHE=str(tmp_path / "cache")), here)
    assert "no GPU found, training on CPU" in said
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["steps"], summary["recipe"]["backend"]) == (2, "unsloth")
    assert summary["recipe"]["save_format"] == ["adapter", "model"]
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_folder), out / "adapter")
    assert "quantization_config" not in AutoModelForCausalLM.from_pretrained(out / "model").config.to_dict()
    assert [path.name for path in here.iterdir()] == ["log"]


def test_what_cannot_be_saved_is_said_before_the_first_step(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(YAML)
    here = tmp_path / "here"
    words = ["--config", str(tmp_path / "run.yaml"), "--model_name_or_path", str(tiny_folder), "--save_format", "gguf"]
    process = start(here, "-m", "grpo_ext.recipes.gsm8k", *words, "--output_dir", str(tmp_path / "out"))
    assert process.wait(timeout=300) == 2
    last = (here / "log").read_text().strip().splitlines()[-1]
    assert last.startswith("error: save_format 'gguf' is Unsloth's, on a GPU; elsewhere save 'merged_16bit'")
    assert not (tmp_path / "out" / "metrics.jsonl").exists()


def test_the_program_in_the_docs(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "how-to" / "unsloth.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    here = tmp_path / "here"
    finish(start(here, "-c", block), here)
    base = AutoModelForCausalLM.from_pretrained(resolve_model("HuggingFaceTB/SmolLM2-135M-Instruct"))
    PeftModel.from_pretrained(base, here / "runs" / "unsloth" / "adapter")
    assert sorted(path.name for path in here.iterdir()) == ["log", "runs"]
