"""Rewards that fail: each function behind a guard, one stop for all processes, rows that nothing scores counted."""

from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from grpo_ext.faults import RunStopped
from grpo_ext.rewards.guard import Guard, Patience
from grpo_ext.trainer.grouped import GroupTrainer

# Share of a generation's completions that no reward function scored
UNSCORABLE = "rewards/unscorable"


def stop_together(problem: str | None, cause: BaseException | None = None) -> None:
    """Stop all processes when one of them has a problem; called by all at the same point.

    Args:
        problem: the sentence of this process, or None.
        cause: what was raised in this process.

    Raises:
        RunStopped: on every process, with the sentence of the first one that has a problem.
    """
    found: list[str | None] = gather_object([problem])
    for process, sentence in enumerate(found):
        if sentence is not None:
            raise RunStopped(f"Process {process}: {sentence}" if len(found) > 1 else sentence) from cause


class GuardedTrainer(GroupTrainer):
    """Holds reward functions and reward models to the config's patience.

    A row that no function scores, by `None`, NaN, infinity or a failure that is gone past, has advantage 0 and is in
    no mean and no deviation, as in TRL.

    Raises:
        RunStopped: a function has failed for good, or too many rows of a generation have no reward; on all processes.
    """

    reward_funcs: list[Any]
    _missing: Tensor

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        patience = Patience(self.args.reward_timeout, self.args.reward_retries, self.args.reward_errors)
        self._guards = [Guard(name, patience) for name in self.reward_func_names]
        # Environments and names of models have become functions and models only now
        self.reward_funcs = [
            guard.around(reward) for guard, reward in zip(self._guards, self.reward_funcs, strict=True)
        ]
        # Rows of the generation so far, which may have several rounds, and those that nothing scored
        self._rows = self._unscorable = 0

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        for guard in self._guards:
            guard.problem = guard.cause = None
        rewards = super()._calculate_rewards(*args, **kwargs)
        if rewards.isinf().any():
            failed = next((guard for guard in self._guards if guard.problem is not None), None)
            stop_together(*((failed.problem, failed.cause) if failed else (None, None)))
            rewards = rewards.masked_fill(rewards.isinf(), torch.nan)
        self._missing = rewards.isnan().all(1)
        self._unscorable += int(self._missing.sum())
        self._rows += len(rewards)
        return rewards

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        before = self._unscorable
        output = super()._generate_and_score_completions(inputs)
        if self._unscorable > before:
            self._count_dead_groups()
        return output

    def _count_dead_groups(self) -> None:
        """TRL's share of dead groups leaves out those with less than two rewards, whose deviation is no number."""
        size = self._group_size
        by_group = self.scale_rewards != "batch" and self.multi_objective_aggregation == "sum_then_normalize"
        if by_group and size > 1:
            scored = (~self._missing).view(-1, size).sum(1)
            self._mode_metrics["frac_reward_zero_std"][-1] += (scored < 2).float().mean().item()

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        inputs = super()._prepare_inputs(generation_batch)
        rows, missing = self._rows, self._unscorable
        self._rows = self._unscorable = 0
        if rows:
            self._mode_metrics[UNSCORABLE].append(missing / rows)
            if self.model.training and missing > self.args.max_unscorable * rows:
                raise RunStopped(
                    f"No reward function scored {missing} of the {rows} completions of a generation, more than "
                    f"`max_unscorable` {self.args.max_unscorable:g}; look at {self._named()}, or raise it."
                )
        return inputs

    def _named(self) -> str:
        return ", ".join(repr(guard.name) for guard in self._guards)
