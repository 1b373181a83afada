"""One script run with TRL's trainer and with ours, and what must be the same in both."""

from collections.abc import Container
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import QUIET, STOCK, largest_difference, policy, prompts, weights
from torch import Tensor
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from grpo_ext import GRPOExtConfig, GRPOExtTrainer
from grpo_ext.models import tiny_tokenizer
from tool_chat import calling, tool_tokenizer

SAME = 2.5e-7  # two roundings of a weight of 1
MOVED = 1e-4
TIMES = ("time", "runtime", "per_second")
WHOLE = {"gradient_accumulation_steps": 1, "per_device_train_batch_size": 8}
SPLIT = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}
# TRL logs a mean of the means of micro-batches, over tokens, or an extreme of each: another split gives other numbers
REGROUPED = ("entropy", "kl", "clip_ratio", "cispo_clip_ratio")
# What is logged beside TRL's with each generation
OWN = {
    "reward": {"effective_samples", "dead_groups", "rewards/unscorable"},
    "eval_reward": {"eval_rewards/unscorable"},
}


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


class Counter:
    """An environment with one tool, which asks and rewards."""

    factor = 1

    def reset(self, **kwargs: Any) -> str:
        self.count = 0
        return " Count."

    def more(self, step: int) -> str:
        """Counts on.

        Args:
            step: how far.
        """
        self.count += self.factor * step
        return str(self.count)

    def get_reward(self) -> float:
        return float(self.count)


class Events(TrainerCallback):
    """Writes down what a trainer tells its callbacks."""

    NAMES = tuple(name for name in dir(TrainerCallback) if name.startswith("on_"))

    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []

    def __getattribute__(self, name: str) -> Any:
        if name not in Events.NAMES:
            return super().__getattribute__(name)
        return lambda args, state, control, **kwargs: self.seen.append((name, state.global_step))


@dataclass
class Run:
    """A run that has ended, and the trained weights that it began with."""

    trainer: GRPOTrainer
    start: dict[str, Tensor]
    events: list[tuple[str, int]]

    @property
    def log(self) -> list[dict[str, Any]]:
        return self.trainer.state.log_history

    @property
    def end(self) -> dict[str, Tensor]:
        return weights(self.trainer.model)


def run(folder: Path, out: Path, cls: type[GRPOTrainer], scenario: dict[str, Any], **fields: Any) -> Run:
    """Train.

    Args:
        folder: of the policy.
        out: output folder.
        cls: trainer.
        scenario: arguments of the trainer and, in capitals, what they are made with: FIELDS of the config, MODEL
            (makes the policy), LORA (whether it has an adapter), GIVEN (makes further arguments of the policy), CALL
            (a tool and its arguments), FROM (checkpoint).
        fields: further fields of the config.
    """
    # TRL adds an environment's reward to the list that it is given
    given = {key: copy(value) for key, value in scenario.items() if key.islower()}
    called = "CALL" in scenario
    if called:
        cls = calling(cls, *scenario["CALL"])
        fields = {"max_completion_length": 96, **fields}
    model = scenario["MODEL"]() if "MODEL" in scenario else policy(folder, scenario.get("LORA", False))
    given |= scenario.get("GIVEN", lambda model: {})(model)
    config = GRPOExtConfig if issubclass(cls, GRPOExtTrainer) else GRPOConfig
    events = Events()
    torch.manual_seed(0)
    trainer = cls(
        args=config(output_dir=str(out), **{**QUIET, **fields, **scenario.get("FIELDS", {})}),
        callbacks=[events],
        **{
            "model": model,
            "train_dataset": prompts(conversational=called),
            "processing_class": tool_tokenizer() if called else tiny_tokenizer(),
            **given,
        },
    )
    start = weights(trainer.model)
    trainer.train(resume_from_checkpoint=scenario.get("FROM"))
    return Run(trainer, start, events.seen)


def both(folder: Path, out: Path, scenario: dict[str, Any], **fields: Any) -> tuple[Run, Run]:
    """The run with TRL's trainer, and with ours."""
    stock = run(folder, out / "stock", STOCK, scenario, **fields)
    return stock, run(folder, out / "ours", GRPOExtTrainer, scenario, **fields)


def assert_same_weights(stock: Run, ours: Run) -> None:
    moved = largest_difference(stock.start, stock.end)
    assert largest_difference(stock.start, ours.start) == 0 and moved > MOVED
    # A float32 weight moved by a large step is equal up to the step's own rounding
    assert largest_difference(stock.end, ours.end) <= SAME * max(1.0, moved / 0.1)


def assert_same_log(
    stock: Run, ours: Run, regrouped: bool = False, added: dict[str, float] | None = None, others: Container[str] = ()
) -> None:
    """Compare what was logged.

    Args:
        stock: TRL's.
        ours: ours.
        regrouped: whether each step has several micro-batches, among which we share out the rows in another way.
        added: name to what our number is above TRL's.
        others: names that are not compared.
    """
    for theirs, mine in zip(stock.log, ours.log, strict=True):
        own = set().union(*(names for name, names in OWN.items() if name in theirs))
        assert mine.keys() ^ theirs.keys() == own
        for key, value in theirs.items():
            if any(word in key for word in TIMES) or key in others or (regrouped and key.split("/")[0] in REGROUPED):
                continue
            wanted = value if value is None or isinstance(value, str) else value + (added or {}).get(key, 0.0)
            # A value without a number, such as an empty mean, is logged as None
            same = mine[key] is None if value is None else mine[key] == pytest.approx(wanted, rel=2e-5, abs=2e-6)
            assert same, f"{key}: {mine[key]}, not {wanted}"


def assert_same(stock: Run, ours: Run, **logged: Any) -> None:
    """The same weights, log and events."""
    assert_same_weights(stock, ours)
    assert_same_log(stock, ours, **logged)
    assert ours.events == stock.events and ("on_step_end", 2) in ours.events
