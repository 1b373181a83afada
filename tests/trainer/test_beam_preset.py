"""The preset `beam` on the pretrained model: beams of one search share most of their tokens, and they train."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import weights

from grpo_ext import PRESETS, GRPOExtConfig, GRPOExtTrainer
from grpo_ext.data.arithmetic import arithmetic
from grpo_ext.models import load_policy, resolve_model


def share_of_digits(completions: list[Any], **kwargs: Any) -> list[float]:
    texts = [completion[0]["content"] for completion in completions]
    return [sum(character.isdigit() for character in text) / max(len(text), 1) for text in texts]


def train(out: Path, **fields: Any) -> tuple[GRPOExtTrainer, list[int], float]:
    """A run, the tokens of each pass that is differentiated, and how far the weights moved."""
    policy, tokenizer = load_policy(resolve_model("HuggingFaceTB/SmolLM2-135M-Instruct"), lora_r=8)
    config = GRPOExtConfig(
        output_dir=str(out), use_cpu=True, per_device_train_batch_size=16, gradient_accumulation_steps=4,
        num_generations=32, max_completion_length=64, max_steps=1, learning_rate=1e-4, report_to="none",
        save_strategy="no", logging_steps=1, disable_tqdm=True, **{**PRESETS["beam"], **fields},
    )  # fmt: skip
    trainer = GRPOExtTrainer(
        model=policy,
        reward_funcs=share_of_digits,
        args=config,
        train_dataset=arithmetic("train", 2, seed=3),
        processing_class=tokenizer,
    )
    tokens: list[int] = []
    policy.get_input_embeddings().register_forward_hook(
        lambda _, inputs, out: tokens.append(inputs[0].numel()) if torch.is_grad_enabled() else None
    )
    before = weights(policy)
    trainer.train()
    after = weights(policy)
    return trainer, tokens, max((after[name] - before[name]).abs().max().item() for name in before)


@pytest.mark.slow
def test_beams_train_with_a_third_of_the_tokens(tmp_path: Path) -> None:
    trainer, beams, moved = train(tmp_path / "beam")
    _, samples, _ = train(tmp_path / "sampling", group_generation="sampling")
    buffered = trainer._buffered_inputs
    assert buffered is not None
    rows = torch.cat([part["completion_ids"] for part in buffered])
    assert len({tuple(row) for row in rows.tolist()}) == len(rows) == 64
    assert moved > 1e-5
    assert trainer.state.log_history[0]["reward_std"] > 0
    assert 3 * sum(beams) <= sum(samples), (beams, samples)
