"""`load_policy(backend="unsloth")` on Unsloth's CPU back end: the same policy as from transformers and peft."""

import re
from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM

from real_unsloth import run

pytestmark = pytest.mark.unsloth

LINEAR = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
REFUSED = {
    "fast_inference": r"fast_inference=True needs a GPU.*use_vllm=True and vllm_sync='adapter'",
    "max_seq_length": r"max_seq_length is 1000000, but this model's window is \d+; give 1 to \d+\.",
    "use_gradient_checkpointing": r"use_gradient_checkpointing is 'yes', but Unsloth takes 'unsloth', True or False\.",
    "gpu_memory_utilization": r"gpu_memory_utilization is 0\.5, but it is of the engine that fast_inference=True",
    "device": r"device is 'cuda:0', but Unsloth found no GPU when it was imported; leave device out\.",
    "dtype": r"dtype torch\.float16 was asked for, but Unsloth loaded torch\.\w+, which this machine prefers",
    "gguf": r"save_format 'gguf' is Unsloth's, on a GPU; elsewhere save 'merged_16bit' .*convert_hf_to_gguf\.py",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("unsloth")


@pytest.fixture(scope="module")
def seen(folder: Path) -> dict[str, Any]:
    return run(folder / "here", "models/unsloth_policy.py", str(folder))


def test_the_weights_are_those_of_the_other_back_end(seen: dict[str, Any]) -> None:
    # Packed weights, quantisation constants and the adapter's start values, to the last bit
    assert seen["differ"] == []
    # Two layers with seven linear ones, each with two factors
    assert (seen["four_bit"], seen["trained"]) == (14, 28)
    assert seen["adapter"] == [4, 8, 0.0, "none", LINEAR]
    assert seen["seeded"]


def test_gradients_are_true_before_and_after_a_rollout(seen: dict[str, Any]) -> None:
    before, after, between = seen["gradients"]
    assert before < 1e-4 and after < 1e-4 and between < 1e-6, seen["gradients"]


def test_a_merged_model_has_the_logits_of_the_policy(seen: dict[str, Any]) -> None:
    assert seen["merged"] < 1e-5 and seen["adapter_matters"] > 1e-2


def test_options_mean_what_they_say(seen: dict[str, Any]) -> None:
    assert seen["training"]
    assert (seen["checkpointing"], seen["default_checkpointing"]) == (False, True)
    assert seen["types"] == ["torch.float32", "torch.bfloat16"]
    assert seen["pad"] == [0, 1, "left", 0]


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_honoured_is_refused(seen: dict[str, Any], name: str) -> None:
    assert re.search(REFUSED[name], seen["refused"][name]), seen["refused"][name]
    assert seen["refused"].keys() == REFUSED.keys()


def test_the_adapter_reloads_without_unsloth(seen: dict[str, Any], folder: Path) -> None:
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder / "tiny"), folder / "adapter")
    assert len([name for name, _ in loaded.named_parameters() if "lora_" in name]) == seen["trained"]


def test_nothing_is_left_in_the_working_directory(seen: dict[str, Any], folder: Path) -> None:
    assert [path.name for path in (folder / "here").iterdir()] == ["log"]
