"""Runs with a fault, and how a run that was stopped by one is compared with the uninterrupted one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from killed_runs import MACHINE
from tiny_runs import early_letters, make, weights
from torch import Tensor
from trl import GRPOTrainer

from grpo_ext import GRPOExtTrainer
from grpo_ext.checkpoints import LAST, flaw

Reward = Callable[..., Any]


def history(trainer: GRPOTrainer) -> list[dict[str, Any]]:
    """What a run has logged, without what is about the machine."""
    return [{name: value for name, value in row.items() if name not in MACHINE} for row in trainer.state.log_history]


def assert_same(found: GRPOTrainer, wanted: GRPOTrainer) -> None:
    """Weights and logs are those of the other run, bit by bit."""
    one, other = weights(found.model), weights(wanted.model)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in other)
    assert history(found) == history(wanted)


def failing(fault: Callable[[list[Any]], Any], calls: range = range(2, 3), reward: Reward = early_letters) -> Reward:
    """A reward function that fails at some of its calls, counted from 1, under its own name.

    Args:
        fault: is given the completions, and raises or returns something in place of the rewards.
        calls: at which.
        reward: what answers the others.
    """
    made: list[None] = []

    def function(completions: list[Any], **given: Any) -> Any:
        made.append(None)
        return fault(completions) if len(made) in calls else reward(completions, **given)

    function.__name__ = reward.__name__
    return function


def stopped(trainer: GRPOTrainer, step: int, error: type[Exception], **train: Any) -> Exception:
    """The exception that ends a training after a complete step, which is saved and named."""
    try:
        trainer.train(**train)
    except error as found:
        folder = Path(str(trainer.args.output_dir)) / f"checkpoint-{step}"
        assert found.__notes__ == [
            f"Stopped after step {step}, which was saved. Resume with: --resume_from_checkpoint {folder}"
        ]
        assert flaw(folder) is None
        return found
    raise AssertionError("the run went on")


def resumed(folder: Path, out: Path, **run: Any) -> GRPOTrainer:
    """The same run without the fault, from its newest checkpoint."""
    trainer = make(folder, out, **run)
    trainer.train(resume_from_checkpoint=LAST)
    return trainer


class Watched(GRPOExtTrainer):
    """Keeps the advantages of each generation."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.advantages: list[Tensor] = []
        super().__init__(*args, **kwargs)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        self.advantages.append(output["advantages"].clone())
        return output
