"""One forward pass for the micro-batches of a step: the same gradients, fewer passes, never across two updates."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PromptTuningConfig, get_peft_model
from tiny_runs import QUIET, STOCK, early_letters, largest_difference, make, policy, prompts, weights

from grpo_ext import GRPOExtConfig, GRPOExtTrainer
from grpo_ext.models import tiny_policy, tiny_tokenizer
from grpo_ext.models.policy import add_lora
from grpo_ext.trainer.shared import SharedForward, balanced_order


def test_gradients_are_those_of_separate_passes() -> None:
    weight = torch.randn(3, 4, dtype=torch.float64).requires_grad_()
    rows = torch.randn(6, 3, dtype=torch.float64)
    ids = torch.arange(6)[:, None]

    def losses(part: int, values: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
        return (values * (part + 1)).pow(2).sum() + (bits * values).sum()

    total = sum(
        losses(i, (rows @ weight)[2 * i : 2 * i + 2], (rows @ weight).sin()[2 * i : 2 * i + 2]) for i in range(3)
    )
    (wanted,) = torch.autograd.grad(total, weight)
    shared = SharedForward(ids, [rows @ weight, (rows @ weight).sin()], [], 3)
    for part in range(3):
        assert shared.is_next(ids[2 * part : 2 * part + 2])
        values, _ = shared.take()
        losses(part, *values).backward()
    assert not shared.is_next(ids[:2])
    torch.testing.assert_close(weight.grad, wanted, rtol=1e-12, atol=1e-12)


def test_a_micro_batch_that_left_no_gradient_counts_as_zero() -> None:
    weight = torch.ones(2, requires_grad=True)
    shared = SharedForward(torch.arange(2)[:, None], [weight * 3.0], [torch.zeros(2)], 2)
    _, others = shared.take()
    assert others[0].tolist() == [0.0]
    shared.take()[0][0].sum().backward()
    assert weight.grad is not None and weight.grad.tolist() == [0.0, 3.0]


def test_long_and_short_groups_take_turns() -> None:
    keys = torch.tensor([0, 1, 2, 3, 4, 0, 1])
    tokens = torch.tensor([1, 5, 9, 2, 4, 2, 5])
    # 10, 9, 4, 3 and 2 tokens
    assert balanced_order(keys, tokens) == [1, 3, 2, 0, 4]
    assert balanced_order(keys[:1], tokens[:1]) == [0]


def passes(trainer: GRPOExtTrainer, gradient: bool = True) -> list[int]:
    """Tokens of each pass with gradients, or of each without, in the order in which they happen."""
    seen: list[int] = []

    def watch(module: Any, inputs: Any, output: Any) -> None:
        if torch.is_grad_enabled() == gradient:
            seen.append(inputs[0].numel())

    trainer.model.get_input_embeddings().register_forward_hook(watch)
    return seen


def trained(folder: Path, out: Path, **fields: Any) -> dict[str, torch.Tensor]:
    trainer = make(folder, out, GRPOExtTrainer, **fields)
    trainer.train()
    return weights(trainer.model)


RUN = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "num_generations": 4}


def test_one_pass_a_step(tiny_folder: Path, tmp_path: Path) -> None:
    trainer = make(tiny_folder, tmp_path, GRPOExtTrainer, **RUN, scoring_tokens=10**6)
    seen = passes(trainer)
    trainer.train()
    assert len(seen) == trainer.state.global_step


def test_the_budget_bounds_a_pass(tiny_folder: Path, tmp_path: Path) -> None:
    trainer = make(tiny_folder, tmp_path, GRPOExtTrainer, **RUN, scoring_tokens=1)
    seen = passes(trainer)
    trainer.train()
    assert len(seen) == 4 * trainer.state.global_step


@pytest.mark.parametrize(("tokens", "most"), [(10**6, 10**6), (30, 40), (1, 20)])
def test_the_budget_bounds_passes_without_gradient(tokens: int, most: int, tiny_folder: Path, tmp_path: Path) -> None:
    run = {**RUN, "lora": True, "beta": 0.04, "scoring_tokens": tokens, "max_steps": 1}
    trainer = make(tiny_folder, tmp_path, GRPOExtTrainer, **run)
    seen: list[int] = []
    score = trainer._score
    trainer._score = lambda *args: (seen.append(trainer._packed(*args[3:6])), score(*args))[1]
    trainer.train()
    # The longest prompt and completion of a row have 22 and 8 tokens; packs are even in rows, not in tokens
    assert max(seen) <= max(most, 22 + 8)


def test_a_pass_that_is_left_early_is_an_error(tiny_folder: Path, tmp_path: Path) -> None:
    class Meddling(GRPOExtTrainer):
        def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
            if self._step == 1:
                inputs = {**inputs, "completion_ids": inputs["completion_ids"].flip(0)}
            return super()._compute_loss(model, inputs)

    trainer = make(tiny_folder, tmp_path, Meddling, **RUN, scoring_tokens=10**6)
    with pytest.raises(RuntimeError, match=r"gradients would be lost.*scoring='padded'"):
        trainer.train()


@pytest.mark.parametrize("tokens", [1, 40, 10**6])
def test_any_budget_gives_the_weights_of_padded_rows(tokens: int, tiny_folder: Path, tmp_path: Path) -> None:
    before = weights(policy(tiny_folder))
    padded = trained(tiny_folder, tmp_path, **RUN, scoring="padded", beta=0.04)
    tree = trained(tiny_folder, tmp_path, **RUN, scoring="tree", scoring_tokens=tokens, beta=0.04)
    assert largest_difference(before, tree) > 1e-4
    assert largest_difference(padded, tree) <= 1e-7


def test_a_short_last_window_is_not_joined_to_the_next(tiny_folder: Path, tmp_path: Path) -> None:
    # 3 micro-batches an epoch and windows of 2: every other window has one micro-batch
    run = {
        "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "num_generations": 4,
        "steps_per_generation": 3, "max_steps": 6, "beta": 0.04,
    }  # fmt: skip
    padded = trained(tiny_folder, tmp_path, **run, scoring="padded")
    tree = trained(tiny_folder, tmp_path, **run, scoring="tree", scoring_tokens=10**6)
    assert largest_difference(padded, tree) <= 5e-7


def test_steps_that_begin_within_a_generation_have_the_rows_of_trls(tiny_folder: Path, tmp_path: Path) -> None:
    fields = {"steps_per_generation": 3, "max_steps": 3, "learning_rate": 0.3}
    ends = []
    for cls in (STOCK, GRPOExtTrainer):
        trainer = make(tiny_folder, tmp_path, cls, **fields)
        trainer.train()
        ends.append(weights(trainer.model))
    assert largest_difference(*ends) <= 1e-6


# Dead groups


def one_group_in_two(completions: list[Any], **kwargs: Any) -> list[float]:
    """Rewards with spread in the second of two groups of four only."""
    return [0.0 if i % 8 < 4 else value for i, value in enumerate(early_letters(completions))]


def nothing(completions: list[Any], **kwargs: Any) -> list[float]:
    return [0.0] * len(completions)


@pytest.mark.parametrize("reward", [one_group_in_two, nothing])
@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "cispo"])
def test_dead_rows_are_skipped_exactly(reward: Any, loss_type: str, tiny_folder: Path, tmp_path: Path) -> None:
    logs, ends, tokens = [], [], []
    for fields in ({"scoring": "padded"}, {"scoring": "tree", "scoring_tokens": 10**6}):
        trainer = make(tiny_folder, tmp_path, GRPOExtTrainer, reward, **RUN, **fields, loss_type=loss_type)
        seen = passes(trainer)
        trainer.train()
        logs.append([log["entropy"] for log in trainer.state.log_history if "entropy" in log])
        ends.append(weights(trainer.model))
        tokens.append(sum(seen))
    assert largest_difference(*ends) <= 1e-7
    assert logs[0] == pytest.approx(logs[1], rel=1e-5)
    # Half the rows and nothing padded; and two tokens for the connection where nothing is alive
    assert tokens[1] < tokens[0] / 2 if reward is one_group_in_two else tokens[1] <= 2 * trainer.state.global_step


def test_dead_rows_count_under_a_kl_term(tiny_folder: Path, tmp_path: Path) -> None:
    trainer = make(tiny_folder, tmp_path, GRPOExtTrainer, nothing, **RUN, beta=0.04)
    seen = passes(trainer)
    trainer.train()
    # More than the two tokens of a connection
    assert min(seen) > 2


def test_the_log_names_the_path_once(tiny_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="grpo_ext")
    make(tiny_folder, tmp_path, GRPOExtTrainer, **RUN).train()
    lines = [record.getMessage() for record in caplog.records if record.name == "grpo_ext"]
    assert len(lines) == 1 and lines[0].startswith("Scoring: tree, ") and lines[0].endswith("x).")


def adapter(kind: str) -> Any:
    model, _ = tiny_policy(seed=0)
    if kind == "dropout":
        return add_lora(model, 4, lora_dropout=0.1)
    return get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))


@pytest.mark.parametrize(("kind", "reason"), [("dropout", "has dropout"), ("prompt", "PROMPT_TUNING adapter")])
def test_adapters_that_the_tree_does_not_serve(
    kind: str, reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="grpo_ext")
    config = GRPOExtConfig(output_dir=str(tmp_path), scoring_tokens=4096, **{**QUIET, **RUN})
    GRPOExtTrainer(adapter(kind), early_letters, config, prompts(), processing_class=tiny_tokenizer())
    assert "Scoring: padded, because LlamaForCausalLM" in caplog.text and reason in caplog.text
    # As on a GPU, where "auto" is padded
    assert "Scoring: no tree is scored in this run, so `scoring_tokens` does nothing." in caplog.messages


def eager(folder: Path, out: Path, **fields: Any) -> GRPOExtTrainer:
    model = policy(folder)
    model.set_attn_implementation("eager")
    config = GRPOExtConfig(output_dir=str(out), **{**QUIET, **RUN, **fields})
    return GRPOExtTrainer(model, early_letters, config, prompts(), processing_class=tiny_tokenizer())


def test_what_cannot_be_served_is_padded_or_refused(
    tiny_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="grpo_ext")
    eager(tiny_folder, tmp_path)
    assert "Scoring: padded, because LlamaForCausalLM runs 'eager' attention" in caplog.text
    with pytest.raises(ValueError, match="`scoring` is 'tree', but LlamaForCausalLM runs 'eager'"):
        eager(tiny_folder, tmp_path, scoring="tree")
