"""GRPO on GSM8K with SmolLM2 in 4 bit on Unsloth's CPU back end, with both ways to generate, and what is saved."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from unsloth_grpo import FIELDS, GENERATION, MODEL, log_probabilities

from grpo_ext.models import resolve_model
from grpo_ext.models.policy import keep_4bit_differentiable
from real_unsloth import run
from real_vllm import ENVIRONMENT

pytestmark = pytest.mark.unsloth


def reloaded(adapter: Path) -> Any:
    """The 4-bit base by transformers and the adapter by peft in the type it was trained in, without Unsloth."""
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    base = AutoModelForCausalLM.from_pretrained(
        resolve_model(MODEL), dtype=torch.bfloat16, quantization_config=quantization
    )
    # The repacked weights of bitsandbytes round otherwise
    assert keep_4bit_differentiable(base) == 210
    # Of a 4-bit policy TRL trains the adapter in bfloat16; float32, which peft would make of it, rounds otherwise
    return PeftModel.from_pretrained(base, adapter, autocast_adapter_dtype=False)


@pytest.mark.parametrize("generation", GENERATION)
def test_three_steps(generation: str, tmp_path: Path, data_dir: Path) -> None:
    variables = {**ENVIRONMENT, "GRPO_EXT_DATA": str(data_dir)}
    seen = run(tmp_path / "here", "trainer/unsloth_grpo.py", generation, str(tmp_path), **variables)
    assert seen["backend"] == {"transformers": "none", "vllm": "EngineRollouts"}[generation]
    # 30 layers with seven linear ones; the output head and the embedding stay in 16 bit
    assert (seen["four_bit"], seen["adapter"]) == (210, 420)
    assert seen["adapter_changed"] == 420 and seen["base_changed"] == []
    logs = seen["logs"]
    assert len(logs) == FIELDS["max_steps"]
    assert all(math.isfinite(value) for row in logs for value in row.values())
    assert all(row["grad_norm"] > 0 for row in logs) and logs[0]["kl"] == pytest.approx(0, abs=1e-3)
    assert logs[-1]["kl"] > 1e-3
    if generation == "vllm":
        assert seen["adapters_sent"] == FIELDS["max_steps"]
        # The engine's base is not quantised, which makes 0.5 to 0.9 on this model
        assert all(row["sampling/sampling_logp_difference/mean"] < 1.5 for row in logs), logs
    before, after = torch.tensor(seen["before"]), torch.tensor(seen["after"])
    assert (after - before).abs().max() > 0.05
    torch.testing.assert_close(
        torch.tensor(log_probabilities(reloaded(tmp_path / "adapter"))), after, rtol=0, atol=1e-5
    )
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["log"]
