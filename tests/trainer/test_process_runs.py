"""Process supervision over two processes, with roll-outs and a model, and on the pretrained policy."""

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from process_processes import SCRIPT
from tiny_runs import largest_difference, make, prompts
from transformers import LlamaConfig, LlamaForTokenClassification

from grpo_ext import PRESETS, GRPOExtConfig, GRPOExtTrainer
from grpo_ext.data.arithmetic import arithmetic
from grpo_ext.models import load_policy, resolve_model, tiny_tokenizer
from grpo_ext.recipes.warm_up import warm_up
from grpo_ext.rewards import REWARDS

HERE = Path(__file__).parent


@pytest.mark.slow
def test_two_processes(tiny_folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(
        [*command, str(HERE / "process_processes.py"), str(tiny_folder), str(tmp_path)],
        env=environment, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in (0, 1)]
    # 1, 0, 0.5, 2, 1, 1: the statistics are those of the group on both processes
    values = torch.tensor([value for rank in (0, 1) for row in SCRIPT[rank] for value in row], dtype=torch.float64)
    for rank, found in enumerate(ranks):
        for row, rewards in enumerate(SCRIPT[rank]):
            expected = torch.zeros_like(found["advantages"][row], dtype=torch.float64)
            for token, reward in zip(found["steps"][row], rewards, strict=False):
                expected[: token + 1] += (reward - values.mean()) / (values.std() + 1e-4)
            torch.testing.assert_close(found["advantages"][row].double(), expected, rtol=0, atol=1e-5)
    assert largest_difference(ranks[0]["weights"], ranks[1]["weights"]) == 0.0
    logged = next(row for row in ranks[0]["logs"] if "process/steps" in row)
    assert logged["process/steps"] == 6 / 4
    assert logged["process/reward"] == pytest.approx(5.5 / 6)


def run(folder: Path, out: Path, **fields: Any) -> GRPOExtTrainer:
    rows = prompts(answer=["5"] * 8)
    made = make(folder, out, dataset=rows, max_completion_length=16, **fields)
    made._splitter = lambda text: range(4, len(text) + 1, 4)
    return made


def logged(trainer: GRPOExtTrainer) -> list[dict[str, float]]:
    return [row for row in trainer.state.log_history if "process/steps" in row]


@pytest.mark.parametrize("name", ["rollouts_soft", "rollouts_hard"])
def test_rollouts_of_the_policy(name: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def has_a_five(completions: list[Any], **columns: Any) -> list[float]:
        return [float("5" in text) for text in completions]

    monkeypatch.setitem(REWARDS, "correct_final", has_a_five)
    trainer = run(tiny_folder, tmp_path, process_reward=name, process_rollouts=4)
    trainer.train()
    for row in logged(trainer):
        assert row["process/estimated"] > 8 and row["process/left_out"] == 0
        assert 0 < row["process/rollout_tokens"] <= row["process/estimated"] * 4 * 12
        assert 0 < row["process/reward"] < 1 and row["process/varied_rows"] > 0
        assert math.isfinite(row["grad_norm"])
    # Estimates of the first policy do not serve the second
    reward = trainer._process_reward
    assert len(reward.cache) == logged(trainer)[-1]["process/estimated"]


def test_rollouts_of_another_model_within_a_budget(tiny_folder: Path, tmp_path: Path) -> None:
    trainer = run(tiny_folder, tmp_path, process_reward="rollouts_soft", process_rollouts=2,
                  process_rollout_model=str(tiny_folder), process_rollout_tokens=100)  # fmt: skip
    trainer.train()
    assert trainer._continuations.model is not trainer.model
    for row in logged(trainer):
        assert row["process/left_out"] > 0 and 0 < row["process/rollout_tokens"] <= 100
    reward = trainer._process_reward
    assert len(reward.cache) == sum(row["process/estimated"] for row in logged(trainer))


def test_a_process_reward_model(tiny_folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=100, hidden_size=16, intermediate_size=32, num_hidden_layers=1, pad_token_id=0,
                         num_attention_heads=2, num_key_value_heads=2, initializer_range=0.5)  # fmt: skip
    LlamaForTokenClassification(config).save_pretrained(tmp_path / "prm")
    tiny_tokenizer().save_pretrained(tmp_path / "prm")
    trainer = run(tiny_folder, tmp_path, process_reward="model", process_reward_model=str(tmp_path / "prm"))
    trainer.train()
    for row in logged(trainer):
        assert row["process/steps"] > 2 and 0 < row["process/reward"] < 1 and row["process/unrewarded"] == 0
        assert row["process/varied_rows"] == 1


@pytest.mark.slow
def test_three_steps_on_the_pretrained_policy(tmp_path: Path) -> None:
    policy, tokenizer = load_policy(resolve_model("HuggingFaceTB/SmolLM2-135M-Instruct"), lora_r=8)
    warm_up(policy, tokenizer, arithmetic("train", 128, seed=9, difficulty="two_step"), 8, 16, 3e-4)
    config = GRPOExtConfig(
        output_dir=str(tmp_path), use_cpu=True, per_device_train_batch_size=16, gradient_accumulation_steps=2,
        num_generations=8, max_completion_length=48, max_steps=3, learning_rate=1e-4, report_to="none",
        save_strategy="no", logging_steps=1, disable_tqdm=True, **PRESETS["deepseekmath_process"],
    )  # fmt: skip
    trainer = GRPOExtTrainer(
        policy, REWARDS["correct_final"], config, processing_class=tokenizer,
        train_dataset=arithmetic("train", 16, seed=3, difficulty="two_step"),
    )  # fmt: skip
    batches: list[dict[str, Any]] = []
    inner = trainer._generate_and_score_completions
    trainer._generate_and_score_completions = lambda inputs: batches.append(inner(inputs)) or batches[-1]
    trainer.train()
    rows = logged(trainer)
    assert len(rows) == 3 and all(math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"]) for row in rows)
    assert any(row["grad_norm"] > 0 for row in rows)
    # More than the outcome's own step, so lines with calculations were found and judged
    assert all(row["process/steps"] > 1.5 and 0 < row["process/reward"] < 1 for row in rows)
    for batch in batches:
        advantages = batch["advantages"]
        assert advantages.shape == batch["completion_ids"].shape and advantages.isfinite().all()
    assert sum(row["process/varied_rows"] for row in rows) > 0.5


def test_a_sequence_level_without_a_ratio_gradient_is_allowed(tmp_path: Path) -> None:
    GRPOExtConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, importance_sampling_level="sequence",
                  loss_type="cispo", process_reward="calculations")  # fmt: skip
