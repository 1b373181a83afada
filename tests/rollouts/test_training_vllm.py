"""GRPO on GSM8K with SmolLM2 and a LoRA adapter: vLLM in this process, and one that is served."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from grpo_ext import GRPOExtConfig, GRPOExtTrainer
from grpo_ext.data.gsm8k import gsm8k
from grpo_ext.models import load_policy, resolve_model
from grpo_ext.rollouts.vllm.engine import EngineRollouts
from grpo_ext.rollouts.vllm.servers import ServerRollouts
from real_vllm import ENVIRONMENT, logps, served

pytestmark = pytest.mark.vllm

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
FIELDS: dict[str, Any] = {
    "use_vllm": True,
    "vllm_sync": "adapter",
    "vllm_max_model_length": 512,
    "vllm_importance_sampling_mode": "token_truncate",
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
    "gradient_checkpointing": False,
    "per_device_train_batch_size": 8,
    "num_generations": 4,
    "max_completion_length": 24,
    "max_steps": 3,
    # A step so long that the adapter of the step before is far off
    "learning_rate": 5e-3,
    "lr_scheduler_type": "constant",
    "logging_steps": 1,
}


class Watch(TrainerCallback):
    """The mean difference of log-probabilities between vLLM and the policy, step by step."""

    def __init__(self) -> None:
        self.differences: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        key = "sampling/sampling_logp_difference/mean"
        if logs and key in logs:
            self.differences.append(float(logs[key]))


def different_letters(completions: list[Any], **kwargs: Any) -> list[float]:
    return [len(set(completion[0]["content"])) / 50 for completion in completions]


def train(
    out: Path, load_in_4bit: bool = False, reward: Callable[..., list[float]] = different_letters, **fields: Any
) -> tuple[GRPOExtTrainer, list[float]]:
    model, tokenizer = load_policy(MODEL, load_in_4bit=load_in_4bit)
    watch = Watch()
    trainer = GRPOExtTrainer(
        model=model,
        reward_funcs=reward,
        args=GRPOExtConfig(output_dir=str(out), **{**FIELDS, **fields}),
        train_dataset=gsm8k("train", size=16),
        processing_class=tokenizer,
        callbacks=[watch],
    )
    trainer.train()
    return trainer, watch.differences


def moved(trainer: GRPOExtTrainer) -> float:
    """Mean difference between log-probabilities of the adapter and those of the base, on a prompt's completion."""
    prompt, completion = [504, 28, 8241], [314, 260, 1131, 30, 198, 504]
    model = trainer.accelerator.unwrap_model(trainer.model).eval()
    adapted = logps(model, prompt, completion, 1.0)
    with model.disable_adapter():
        return (adapted - logps(model, prompt, completion, 1.0)).abs().mean().item()


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, data_dir: Path) -> None:
    monkeypatch.setenv("GRPO_EXT_DATA", str(data_dir))
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


def test_in_process(tmp_path: Path) -> None:
    trainer, differences = train(tmp_path)
    assert isinstance(trainer.vllm_generation, EngineRollouts)
    assert len(differences) == 3 and max(differences) < 0.08, differences
    # A sync that does not arrive shows 0.9 and more from the second step on
    assert moved(trainer) > 0.2
    assert trainer.vllm_generation.adapter.number == 3


def test_in_process_with_a_4bit_policy(tmp_path: Path) -> None:
    trainer, differences = train(tmp_path, load_in_4bit=True, max_steps=1, per_device_train_batch_size=4)
    # The base in vLLM is not quantised, which the importance ratio corrects
    assert str(trainer.vllm_generation.llm.llm_engine.model_config.dtype) == "torch.bfloat16"
    assert len(differences) == 1 and 0.08 < differences[0] < 1.2, differences


def test_beams_in_process(tmp_path: Path) -> None:
    fields = {"group_generation": "beam", "vllm_importance_sampling_correction": False, "max_steps": 1}
    seen: list[str] = []

    def reward(completions: list[Any], **kwargs: Any) -> list[float]:
        seen.extend(completion[0]["content"] for completion in completions)
        return different_letters(completions)

    train(tmp_path, reward=reward, **fields, max_completion_length=8)
    assert len(seen) == 8 and len(set(seen[:4])) == len(set(seen[4:])) == 4


def test_served(tmp_path: Path) -> None:
    flags = ("--max-model-len", "512", "--dtype", "bfloat16", "--max-num-seqs", "16")
    with served(resolve_model(MODEL), 1, tmp_path, *flags) as started:
        trainer, differences = train(tmp_path / "out", vllm_server_urls=[url for url, _ in started])
        assert isinstance(trainer.vllm_generation, ServerRollouts)
        assert len(differences) == 3 and max(differences) < 0.08, differences
        assert moved(trainer) > 0.2
