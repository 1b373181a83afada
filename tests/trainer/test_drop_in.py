"""With nothing set, GRPOExtTrainer is TRL's trainer: same weights after two optimiser steps, same metrics."""

from pathlib import Path
from typing import Any

import pytest
from tiny_runs import STOCK, digits_or_none, early_letters, largest_difference, make, prompts, weights
from trl import GRPOTrainer

from grpo_ext import GRPOExtTrainer
from grpo_ext.objective import TRL_LOSS_TYPES

SAME = 2.5e-7  # two roundings of a weight of 1
MOVED = 1e-4
TIMES = ("time", "runtime", "per_second")
BETA = {"beta": 0.04}
# At the usual learning rate a second step on the same completions is still inside every clip range.
OFF_POLICY = {"learning_rate": 0.1, "epsilon": 0.002, "epsilon_high": 0.003, "beta": 0.04}

CASES: dict[str, dict[str, Any]] = {
    **{loss_type: {"loss_type": loss_type} for loss_type in TRL_LOSS_TYPES},
    "full_beta": {"loss_type": "grpo", **BETA},
    "lora_beta": {"loss_type": "dapo", "lora": True, **BETA},
    "lora_plain_k3": {"loss_type": "grpo", "lora": True, "use_bias_correction_kl": False, "num_iterations": 2, **BETA},
    "iterations": {"loss_type": "grpo", "num_iterations": 2, **OFF_POLICY},
    "sequence": {"loss_type": "grpo", "importance_sampling_level": "sequence", "num_iterations": 2, **OFF_POLICY},
    "cispo_iterations": {"loss_type": "cispo", "num_iterations": 2, "learning_rate": 0.1, "epsilon_high": 1.002},
    "steps_per_generation": {"loss_type": "dapo", "steps_per_generation": 4, **OFF_POLICY},
    "steps_luspo": {"loss_type": "luspo", "steps_per_generation": 4, "importance_sampling_level": "sequence"},
    "conversational": {"loss_type": "dr_grpo", "conversational": True},
    "two_rewards": {"reward_funcs": [early_letters, digits_or_none], "reward_weights": [1.0, 0.5]},
    "batch_scale": {"scale_rewards": "batch"},
    "no_scale": {"scale_rewards": False},
    "temperature": {"temperature": 0.7},
    "entropy_bonus": {"entropy_coef": 0.01},
    "high_entropy": {"top_entropy_quantile": 0.5},
    "truncated": {"mask_truncated_completions": True},
}


def trained(folder: Path, out: Path, cls: type[GRPOTrainer], **case: Any) -> tuple[GRPOTrainer, float]:
    dataset = prompts(case.pop("conversational", False))
    trainer = make(folder, out, cls, dataset=dataset, **case)
    before = weights(trainer.model)
    trainer.train()
    return trainer, largest_difference(before, weights(trainer.model))


@pytest.mark.parametrize("name", CASES)
def test_weights_equal_stock(name: str, tiny_folder: Path, tmp_path: Path) -> None:
    stock, moved = trained(tiny_folder, tmp_path, STOCK, **CASES[name])
    ours, _ = trained(tiny_folder, tmp_path, GRPOExtTrainer, **CASES[name])
    assert moved > MOVED
    # A float32 weight moved by a large step is equal up to the step's own rounding
    assert largest_difference(weights(stock.model), weights(ours.model)) <= SAME * max(1.0, moved / 0.1)


# With a single micro-batch a step, a mean of tokens does not depend on how rows are split.
@pytest.mark.parametrize("name", CASES)
def test_metrics_equal_stock(name: str, tiny_folder: Path, tmp_path: Path) -> None:
    case = {**CASES[name], "gradient_accumulation_steps": 1, "per_device_train_batch_size": 8}
    case["steps_per_generation"] = case.get("steps_per_generation", 2) // 2
    stock, _ = trained(tiny_folder, tmp_path, STOCK, **case)
    ours, _ = trained(tiny_folder, tmp_path, GRPOExtTrainer, **case)
    for theirs, mine in zip(stock.state.log_history, ours.state.log_history, strict=True):
        kept = {key: value for key, value in theirs.items() if not any(word in key for word in TIMES)}
        # What is logged beside TRL's
        own = {"effective_samples", "rewards/unscorable"}
        assert mine.keys() - theirs.keys() == (own if "reward" in theirs else set())
        assert theirs.keys() <= mine.keys()
        for key, value in kept.items():
            # A value without a number, such as an empty mean, is logged as None
            assert mine[key] is None if value is None else mine[key] == pytest.approx(value, rel=2e-5, abs=2e-6), key


OWN = {name: case for name, case in CASES.items() if "lora_plain" not in name}


@pytest.mark.parametrize("name", OWN)
def test_own_loss_equals_native(name: str, tiny_folder: Path, tmp_path: Path) -> None:
    case = OWN[name]
    surrogate = TRL_LOSS_TYPES[case.get("loss_type", "dapo")]["surrogate"]
    native, moved = trained(tiny_folder, tmp_path, GRPOExtTrainer, **case)
    own, _ = trained(tiny_folder, tmp_path, GRPOExtTrainer, surrogate=surrogate, **case)
    assert moved > MOVED
    assert own.args.uses_own_objective and not native.args.uses_own_objective
    assert largest_difference(weights(native.model), weights(own.model)) <= SAME * max(1.0, moved / 0.1)
