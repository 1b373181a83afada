"""What a TRL script may ask for besides an objective runs the same: the same weights, log and events."""

from pathlib import Path
from typing import Any

import pytest
from drop_in_runs import (
    SPLIT,
    WHOLE,
    Counter,
    Run,
    assert_same,
    assert_same_log,
    assert_same_weights,
    both,
    run,
    spelled,
)
from peft import LoraConfig
from tiny_runs import STOCK, digits_or_none, early_letters, prompts
from trl import GRPOTrainer

from grpo_ext import GRPOExtTrainer

# Each generation of three steps serves two of them in two micro-batches each
ITERATED = {**SPLIT, "num_iterations": 2, "max_steps": 3}


def add(a: int, b: int) -> int:
    """Adds.

    Args:
        a: a number.
        b: another one.
    """
    return a + b


def weighed(completions: list[Any], weight: list[float], **kwargs: Any) -> list[float]:
    return weight


def long_turns(completions: list[Any], **kwargs: Any) -> list[float]:
    return [float(sum(len(message["content"] or "") for message in turns)) for turns in completions]


def half_none(completions: list[Any], **kwargs: Any) -> list[float | None]:
    """One group with nothing but `None`, one without any; above a half a run of ours would stop."""
    return [None if row < len(completions) // 2 else float(row % 3) for row in range(len(completions))]


async def later(completions: list[Any], **kwargs: Any) -> list[float]:
    return early_letters(completions)


# Arguments of the trainer and, in capitals, what the run is made with (`drop_in_runs.run`)
SCENARIOS: dict[str, dict[str, Any]] = {
    "tools": {"tools": [add], "reward_funcs": long_turns, "CALL": ("add", {"a": 2, "b": 3})},
    "environment": {"environment_factory": Counter, "CALL": ("more", {"step": 2}), "reward_funcs": long_turns},
    "environment_owns_the_reward": {"environment_factory": Counter, "CALL": ("more", {"step": 2}), "reward_funcs": []},
    "rollout_func": {"rollout_func": spelled, "reward_funcs": [weighed, early_letters]},
    "weights": {"reward_funcs": [early_letters, digits_or_none], "FIELDS": {"reward_weights": [0.3, -2.0]}},
    "gdpo": {
        "reward_funcs": [early_letters, digits_or_none],
        "FIELDS": {"multi_objective_aggregation": "normalize_then_sum"},
    },
    # One of two groups has no reward at all, which TRL does not count among those without a spread
    "none": {"reward_funcs": [half_none], "ADDED": {"frac_reward_zero_std": 0.5}},
    "none_beside_another": {"reward_funcs": [half_none, early_letters]},
    "async": {"reward_funcs": [later, early_letters]},
    "eval": {
        "reward_funcs": early_letters,
        "eval_dataset": prompts(),
        "FIELDS": {
            "eval_strategy": "steps",
            "eval_steps": 1,
            "per_device_eval_batch_size": 8,
            "num_generations_eval": 2,
        },
    },
    "peft_config": {
        "reward_funcs": early_letters,
        "peft_config": LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights="gaussian"),
        "FIELDS": {"learning_rate": 1.0, "max_steps": 3},
    },
    "peft_config_beta": {
        "reward_funcs": early_letters,
        "peft_config": LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights="gaussian"),
        "FIELDS": {"learning_rate": 1.0, "max_steps": 3, "beta": 0.1},
    },
    "synced_reference": {
        "reward_funcs": early_letters,
        "FIELDS": {"beta": 0.1, "sync_ref_model": True, "ref_model_sync_steps": 1, "ref_model_mixup_alpha": 0.5},
    },
}


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize("fields", [WHOLE, ITERATED], ids=["whole", "iterated"])
@pytest.mark.filterwarnings("ignore:You are using:UserWarning")
def test_a_scenario_equals_stock(fields: dict[str, Any], name: str, tiny_folder: Path, tmp_path: Path) -> None:
    scenario = SCENARIOS[name]
    stock, ours = both(tiny_folder, tmp_path, scenario, **fields)
    assert_same(stock, ours, regrouped=fields is ITERATED, added=scenario.get("ADDED"))
    if "CALL" in scenario:
        assert stock.log[0]["tools/call_frequency"] == 0.5


# TRL counts from zero when it goes on, so it is the same run where a checkpoint ends a generation
@pytest.mark.parametrize("lora", [False, True])
def test_resume_equals_stock(lora: bool, tiny_folder: Path, tmp_path: Path) -> None:
    def resumed(cls: type[GRPOTrainer]) -> Run:
        out = tmp_path / cls.__name__
        # transformers 5.17 goes on with an untrained adapter where there is another one beside it
        saved = {**WHOLE, "save_strategy": "steps", "save_steps": 1, "beta": 0.0 if lora else 0.1}
        scenario = {"reward_funcs": early_letters, "LORA": lora}
        run(tiny_folder, out, cls, scenario, **saved, max_steps=1)
        return run(tiny_folder, out, cls, {**scenario, "FROM": str(out / "checkpoint-1")}, **saved, max_steps=3)

    stock, ours = resumed(STOCK), resumed(GRPOExtTrainer)
    assert_same_weights(stock, ours)
    assert_same_log(stock, ours, others=("train_loss",))
    assert [row["step"] for row in ours.log] == [1, 2, 3, 3]
    # That of transformers leaves out the steps before the checkpoint
    losses = [row["loss"] for row in ours.log[:3]]
    assert ours.log[-1]["train_loss"] == pytest.approx(sum(losses) / 3, rel=2e-5, abs=2e-6)
