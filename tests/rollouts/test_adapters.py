"""Adapters on disk: what is written, under which names, what is left behind, and what vLLM could not serve."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from grpo_ext.models import tiny_policy
from grpo_ext.models.policy import add_lora
from grpo_ext.rollouts.vllm import adapters
from grpo_ext.rollouts.vllm.adapters import AdapterFolder, default_parent, engine_rank, unservable
from grpo_ext.rollouts.vllm.base import base_name, engine_dtype, same_model


def lora(**fields: Any) -> PeftModel:
    model, _ = tiny_policy()
    return get_peft_model(model, LoraConfig(**{"r": 4, "target_modules": ["q_proj", "v_proj"], **fields}))


def test_a_written_adapter_gives_the_same_model(tmp_path: Path) -> None:
    model = lora(use_rslora=True, lora_alpha=3)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    folder = AdapterFolder(str(tmp_path), torch.float32)
    written = folder.write(model)
    base, _ = tiny_policy()
    read = PeftModel.from_pretrained(base, written.path)
    ids = torch.arange(4, 20)[None]
    assert torch.equal(model.eval()(ids).logits, read.eval()(ids).logits)
    assert not torch.allclose(tiny_policy()[0](ids).logits, read(ids).logits, atol=1e-2)
    files = list(Path(written.path).iterdir())
    assert {file.name for file in files} == {"adapter_config.json", "adapter_model.safetensors"}
    assert written.size == sum(file.stat().st_size for file in files)


def test_each_write_has_a_new_name_and_the_older_ones_go(tmp_path: Path) -> None:
    model, folder = lora(), AdapterFolder(str(tmp_path))
    written = [folder.write(model) for _ in range(4)]
    assert [adapter.number for adapter in written] == [1, 2, 3, 4]
    assert len({adapter.name for adapter in written}) == 4
    # The one before the last may still be read; nothing unfinished stays
    names = sorted(path.name for path in folder.path.iterdir() if path.is_dir())
    assert names == sorted(adapter.name for adapter in written[-2:])
    assert all(tensor.dtype == torch.bfloat16 for tensor in load_weights(written[-1].path).values())
    assert AdapterFolder(str(tmp_path)).path != folder.path


def load_weights(path: str) -> dict[str, torch.Tensor]:
    return load_file(f"{path}/adapter_model.safetensors")


def test_an_unfinished_adapter_has_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = AdapterFolder(str(tmp_path))

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(adapters, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        folder.write(lora())
    assert [path.name for path in folder.path.iterdir() if path.is_dir()] == ["partial-1"]


def test_the_active_adapter_is_the_one(tmp_path: Path) -> None:
    model = lora()
    model.add_adapter("ref", LoraConfig(r=8, target_modules=["q_proj"]))
    weights = load_weights(AdapterFolder(str(tmp_path)).write(model).path)
    assert {tensor.size(0) for name, tensor in weights.items() if "lora_A" in name} == {4}
    model.set_adapter("ref")
    weights = load_weights(AdapterFolder(str(tmp_path)).write(model).path)
    assert {tensor.size(0) for name, tensor in weights.items() if "lora_A" in name} == {8}


SCRIPT = """
import os, sys, signal
from grpo_ext.models import tiny_policy
from grpo_ext.rollouts.vllm.adapters import AdapterFolder
folder = AdapterFolder(sys.argv[1])
folder.write(tiny_policy(lora_r=4)[0])
if os.fork() == 0:
    sys.exit(0)
os.wait()
assert folder.path.is_dir()  # a child that ends does not take it along
print(folder.path)
sys.stdout.flush()
if sys.argv[2] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[2] == "raises":
    raise RuntimeError
"""


@pytest.mark.slow
@pytest.mark.parametrize("end", ["exits", "raises", "killed"])
def test_nothing_is_left_behind(tmp_path: Path, end: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(adapters.__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), end], capture_output=True, text=True, env=environment
    )
    assert done.stdout.strip().startswith(str(tmp_path)), done.stderr
    # What a killed process leaves goes when the next one begins
    assert len(list(tmp_path.iterdir())) == (1 if end == "killed" else 0)
    other = tmp_path / f"{adapters.PREFIX}-elsewhere-1-abc"
    other.mkdir()
    mine = AdapterFolder(str(tmp_path))
    again = AdapterFolder(str(tmp_path))
    assert set(tmp_path.iterdir()) == {other, mine.path, again.path}


def test_a_folder_stays_until_its_lock_is_free(tmp_path: Path) -> None:
    folder = AdapterFolder(str(tmp_path))
    # In another container with this name its process has a number that nobody has here
    elsewhere = folder.path.rename(tmp_path / f"{adapters.PREFIX}-{socket.gethostname()}-999999999-abc")
    AdapterFolder(str(tmp_path))
    assert elsewhere.is_dir()
    folder._lock.close()
    AdapterFolder(str(tmp_path))
    assert not elsewhere.exists()


def test_the_folder_is_in_memory_where_there_is_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(adapters, "MEMORY", tmp_path)
    assert default_parent() == tmp_path
    monkeypatch.setattr(adapters, "MEMORY", tmp_path / "none")
    assert default_parent().is_dir()
    with pytest.raises(OSError, match=r"`vllm_adapter_dir` is .*nowhere', which is no folder"):
        AdapterFolder(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(("rank", "engine"), [(1, 1), (2, 8), (8, 8), (9, 16), (33, 64), (257, 320), (512, 512)])
def test_the_smallest_rank_that_fits(rank: int, engine: int) -> None:
    assert engine_rank(rank) == engine


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 2}}, "alpha_pattern"),
        ({"bias": "all"}, "bias='all'"),
        ({"lora_bias": True}, "adapter with a bias"),
        ({"trainable_token_indices": [4, 5]}, "trainable_token_indices"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"init_lora_weights": "olora"}, "init_lora_weights='olora'"),
    ],
)
def test_what_vllm_cannot_serve_is_said(fields: dict[str, Any], said: str) -> None:
    assert said in str(unservable(lora(**fields)))


def test_policies_without_a_lora_adapter() -> None:
    model, _ = tiny_policy()
    assert "all its weights are trained" in str(unservable(model))
    prompt = get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    assert "type PROMPT_TUNING" in str(unservable(prompt))
    assert unservable(lora()) is None
    beside = lora()
    beside.get_base_model().model.norm.weight.requires_grad_(True)
    assert "also trains base_model.model.model.norm.weight" in str(unservable(beside))


def saved(folder: Path) -> str:
    model, tokenizer = tiny_policy(hidden_size=64)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def four_bit(folder: str) -> PeftModel:
    quantised = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16)
    return add_lora(AutoModelForCausalLM.from_pretrained(folder, quantization_config=quantised, dtype="bfloat16"), 4)


def test_under_a_4bit_policy_lies_the_16bit_base(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model")
    model = four_bit(folder)
    assert unservable(model) is None and base_name(model, None) == folder
    assert engine_dtype(model) == torch.bfloat16
    written = AdapterFolder(str(tmp_path)).write(model)
    weights = load_weights(written.path)
    assert weights and all("lora_" in name for name in weights) and written.size < 50_000


def test_a_4bit_checkpoint_is_traced_to_its_base(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model")
    model = four_bit(folder)
    checkpoint = tmp_path / "model-bnb-4bit"
    model.get_base_model().config.save_pretrained(checkpoint)
    assert "bitsandbytes" in (checkpoint / "config.json").read_text()
    model.get_base_model().name_or_path = str(checkpoint)
    assert base_name(model, None) == folder
    (tmp_path / "model" / "config.json").unlink()
    with pytest.raises(ValueError, match=r"4-bit checkpoint '.*model-bnb-4bit', and .* not found; .*vllm_base_model"):
        base_name(model, None)
    assert base_name(model, "hub/name") == "hub/name"


def test_a_policy_made_in_memory_has_no_base() -> None:
    with pytest.raises(ValueError, match=r"not loaded from a folder or hub name .*vllm_base_model"):
        base_name(lora(), None)


def test_types() -> None:
    model = lora()
    assert engine_dtype(model) == torch.float32
    assert engine_dtype(model, bf16=True) == torch.bfloat16 and engine_dtype(model, fp16=True) == torch.float16


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("owner/Model", "owner/Model", True),
        ("owner/Model", "somewhere/cache/model", True),
        ("hub/models--owner--Model/snapshots/3f2a", "owner/Model", True),
        ("owner/Model", "owner/Model-2", False),
        ("models--a--b/snapshots/3f2a", "models--a--c/snapshots/3f2a", False),
    ],
)
def test_names_of_the_same_model(one: str, other: str, same: bool) -> None:
    assert same_model(one, other) is same


def test_the_config_says_what_vllm_reads(tmp_path: Path) -> None:
    written = AdapterFolder(str(tmp_path)).write(lora(lora_alpha=12))
    config = json.loads((Path(written.path) / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (4, 12, ["q_proj", "v_proj"])
