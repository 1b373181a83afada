"""What a TRL script may ask for besides an objective runs the same: the same weights, log and events."""

from copy import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from tiny_runs import QUIET, STOCK, digits_or_none, early_letters, largest_difference, policy, prompts, weights
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from grpo_ext import GRPOExtConfig, GRPOExtTrainer
from grpo_ext.models import tiny_tokenizer
from tool_chat import calling, tool_tokenizer

TIMES = ("time", "runtime", "per_second")
WHOLE = {"gradient_accumulation_steps": 1, "per_device_train_batch_size": 8}


def add(a: int, b: int) -> int:
    """Adds.

    Args:
        a: a number.
        b: another one.
    """
    return a + b


class Counter:
    """An environment with one tool and its own reward."""

    def reset(self, **kwargs: Any) -> str:
        self.count = 0
        return " Count."

    def more(self, step: int) -> str:
        """Counts on.

        Args:
            step: how far.
        """
        self.count += step
        return str(self.count)

    def get_reward(self) -> float:
        return float(self.count)


def spelled(rows: list[Any], trainer: GRPOTrainer) -> dict[str, Any]:
    """Completions of letters that no policy has written, and a column that rewards read."""
    tokenizer = trainer.processing_class
    asked = [tokenizer(row)["input_ids"] for row in rows]
    made = [tokenizer("abcdefgh"[: 2 + place % 6])["input_ids"] for place in range(len(rows))]
    return {
        "prompt_ids": asked,
        "completion_ids": made,
        "logprobs": [[-1.0] * len(ids) for ids in made],
        "weight": [float(place % 3) for place in range(len(rows))],
    }


def weighed(completions: list[Any], weight: list[float], **kwargs: Any) -> list[float]:
    return weight


def long_turns(completions: list[Any], **kwargs: Any) -> list[float]:
    return [float(sum(len(message["content"] or "") for message in turns)) for turns in completions]


def half_none(completions: list[Any], **kwargs: Any) -> list[float | None]:
    """One group with nothing but `None`, one without any; above a half a run of ours would stop."""
    return [None if row < len(completions) // 2 else float(row % 3) for row in range(len(completions))]


async def later(completions: list[Any], **kwargs: Any) -> list[float]:
    return early_letters(completions)


class Events(TrainerCallback):
    """Writes down what a trainer tells its callbacks."""

    NAMES = tuple(name for name in dir(TrainerCallback) if name.startswith("on_"))

    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []

    def __getattribute__(self, name: str) -> Any:
        if name not in Events.NAMES:
            return super().__getattribute__(name)
        return lambda args, state, control, **kwargs: self.seen.append((name, state.global_step))


# Arguments of the trainer and, in capitals, what the run is made with
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
    # TRL does not count a group without any reward among the dead ones
    "none": {"reward_funcs": [half_none], "OTHER": {"frac_reward_zero_std"}},
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


def rows(scenario: dict[str, Any]) -> Dataset:
    return prompts(conversational="CALL" in scenario)


def run(folder: Path, out: Path, cls: type[GRPOTrainer], scenario: dict[str, Any]) -> tuple[GRPOTrainer, Events]:
    # TRL adds an environment's reward to the list that it is given
    given = {key: copy(value) for key, value in scenario.items() if key.islower()}
    if "CALL" in scenario:
        cls = calling(cls, *scenario["CALL"])
    events = Events()
    config = GRPOExtConfig if issubclass(cls, GRPOExtTrainer) else GRPOConfig
    length = 96 if "CALL" in scenario else 8
    fields = {**QUIET, **WHOLE, "max_completion_length": length, **scenario.get("FIELDS", {})}
    torch.manual_seed(0)
    trainer = cls(
        model=policy(folder),
        args=config(output_dir=str(out), **fields),
        train_dataset=rows(scenario),
        processing_class=tool_tokenizer() if "CALL" in scenario else tiny_tokenizer(),
        callbacks=[events],
        **given,
    )
    trainer.train()
    return trainer, events


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.filterwarnings("ignore:You are using:UserWarning")
def test_a_scenario_equals_stock(name: str, tiny_folder: Path, tmp_path: Path) -> None:
    scenario = SCENARIOS[name]
    stock, theirs = run(tiny_folder, tmp_path / "stock", STOCK, scenario)
    ours, mine = run(tiny_folder, tmp_path / "ours", GRPOExtTrainer, scenario)
    fresh = weights(policy(tiny_folder))
    ends = weights(stock.model)
    moved = max((fresh.get(name, torch.zeros(())) - end).abs().max().item() for name, end in ends.items())
    assert moved > 1e-4
    assert largest_difference(ends, weights(ours.model)) <= 2.5e-7 * max(1.0, moved / 0.1)
    assert mine.seen == theirs.seen and ("on_step_end", 2) in mine.seen
    if "CALL" in scenario:
        assert stock.state.log_history[0]["tools/call_frequency"] == 0.5
    for one, other in zip(stock.state.log_history, ours.state.log_history, strict=True):
        for key, value in one.items():
            if not any(word in key for word in TIMES) and key not in scenario.get("OTHER", ()):
                same = other[key] is None if value is None else other[key] == pytest.approx(value, rel=2e-5, abs=2e-6)
                assert same, key


# TRL counts from zero when it goes on, so it is the same run where a checkpoint ends a generation
@pytest.mark.parametrize("lora", [False, True])
def test_resume_equals_stock(lora: bool, tiny_folder: Path, tmp_path: Path) -> None:
    ends = []
    for cls in (STOCK, GRPOExtTrainer):
        config = GRPOExtConfig if cls is GRPOExtTrainer else GRPOConfig
        out = tmp_path / cls.__name__
        for steps, checkpoint in ((1, None), (3, str(out / "checkpoint-1"))):
            trainer = cls(
                model=policy(tiny_folder, lora),
                reward_funcs=early_letters,
                args=config(
                    output_dir=str(out),
                    **{**QUIET, **WHOLE, "save_strategy": "steps", "save_steps": 1, "max_steps": steps},
                    # transformers 5.17 goes on with an untrained adapter where there is another one beside it
                    beta=0.0 if lora else 0.1,
                ),
                train_dataset=prompts(),
                processing_class=tiny_tokenizer(),
            )
            trainer.train(resume_from_checkpoint=checkpoint)
        ends.append(weights(trainer.model))
    assert largest_difference(weights(policy(tiny_folder, lora)), ends[0]) > 1e-4
    assert largest_difference(*ends) <= 2.5e-7
