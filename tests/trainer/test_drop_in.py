"""With nothing set, GRPOExtTrainer is TRL's trainer: same weights after two optimiser steps, same metrics."""

from pathlib import Path
from typing import Any

import pytest
from drop_in_runs import WHOLE, Run, assert_same_log, assert_same_weights, both, run
from tiny_runs import digits_or_none, early_letters, prompts

from grpo_ext import GRPOExtTrainer
from grpo_ext.objective import TRL_LOSS_TYPES

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
    **{
        f"{loss_type}_iterations": {"loss_type": loss_type, "num_iterations": 2, **OFF_POLICY}
        for loss_type in ("bnpo", "dr_grpo", "sapo", "vespo")
    },
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


def scenario(**case: Any) -> dict[str, Any]:
    return {
        "reward_funcs": case.pop("reward_funcs", early_letters),
        "train_dataset": prompts(case.pop("conversational", False)),
        "LORA": case.pop("lora", False),
        "FIELDS": case,
    }


@pytest.mark.parametrize("name", CASES)
def test_a_case_equals_stock(name: str, tiny_folder: Path, tmp_path: Path) -> None:
    stock, ours = both(tiny_folder, tmp_path, scenario(**CASES[name]))
    assert_same_weights(stock, ours)
    assert_same_log(stock, ours, regrouped=True)


# With a single micro-batch a step, a mean of tokens does not depend on how rows are split.
@pytest.mark.parametrize("name", CASES)
def test_all_metrics_equal_stock(name: str, tiny_folder: Path, tmp_path: Path) -> None:
    steps = CASES[name].get("steps_per_generation", 2) // 2
    case = {**CASES[name], **WHOLE, "steps_per_generation": steps}
    assert_same_log(*both(tiny_folder, tmp_path, scenario(**case)))


# Our cispo asks for its cap; 0.2 is what TRL takes
OWN = {name: {"epsilon_high": 0.2, **case} for name, case in CASES.items() if "lora_plain" not in name}


@pytest.mark.parametrize("name", OWN)
def test_own_loss_equals_native(name: str, tiny_folder: Path, tmp_path: Path) -> None:
    def ours(**fields: Any) -> Run:
        return run(tiny_folder, tmp_path, GRPOExtTrainer, scenario(**OWN[name], **fields))

    surrogate = TRL_LOSS_TYPES[OWN[name].get("loss_type", "dapo")]["surrogate"]
    native, own = ours(), ours(surrogate=surrogate)
    assert own.trainer.args.uses_own_objective and not native.trainer.args.uses_own_objective
    assert_same_weights(native, own)
