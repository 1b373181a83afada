"""Rewards of the steps of a solution: by a rule, by roll-outs, by a model. A row each in `PROCESS_REWARDS`.

A process reward takes `prompts`, `completions`, `steps` (for each completion its `Step`s) and the dataset's columns by
name, each a list with one entry a completion. It returns for each completion a list with one number or None a step.
None means that the step is not rewarded: it belongs to the next rewarded step.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from grpo_ext.files import digest
from grpo_ext.rewards.calculations import check_calculations
from grpo_ext.rewards.checked import checked
from grpo_ext.rewards.process_model import load_process_model
from grpo_ext.rewards.steps import Step

StepRewards = list[list[float | None]]
ProcessReward = Callable[..., StepRewards]
Ids = Sequence[int]

# Estimates of a model that does not change are kept, up to so many, each under a digest of 32 characters
MOST_CACHED = 200_000


@dataclass(frozen=True)
class Tools:
    """What the run lends to a process reward.

    Attributes:
        continue_from: from P prefixes, K, and the tokens each prefix may still get, K continuations of each prefix.
        check: reward function of finished solutions.
        tokenizer: of the policy.
        device: of the run.
        max_completion_length: tokens of a completion at most.
        model: name of a process reward model.
        rollouts: K.
        token_budget: tokens of all roll-outs of a call at most, or None.
        policy_rolls_out: whether the roll-outs are the policy's own, which changes.
    """

    continue_from: Callable[[list[list[int]], int, list[int]], list[list[list[int]]]]
    check: Callable[..., list[Any]]
    tokenizer: Any
    device: torch.device
    max_completion_length: int
    model: str | None = None
    rollouts: int = 8
    token_budget: int | None = None
    policy_rolls_out: bool = True


def calculations(
    prompts: Sequence[Any], completions: Sequence[Any], steps: Sequence[Sequence[Step]], **columns: Any
) -> StepRewards:
    """1 for a step whose calculations are all right, 0 for one with a wrong one, None for one without.

    A step without a calculation is no step of its own, because a number for it would be the normalisation's zero
    point: rewarding it as right pays for empty lines, rewarding it as wrong for leaving explanations out.

    Args:
        prompts: B prompts, not read.
        completions: B completions, not read.
        steps: for each completion its steps.
        columns: not read.

    Returns:
        Rewards of the steps of each completion.
    """

    def reward(step: Step) -> float | None:
        right = check_calculations(step.text)
        return None if right is None else float(right)

    return [[reward(step) for step in row] for row in steps]


@dataclass
class RolloutReward:
    """Estimates whether a step still leads to the right answer (Math-Shepherd 2312.08935, sec. 3.3, eq. 3 and 4).

    From the end of a step K continuations are drawn; soft: (1/K) Σ 1[answer right], hard: 1[any answer right]. The
    last step of a finished completion needs none: its reward is whether the completion itself is right.

    Attributes:
        tools: what the run lends.
        hard: whether any right roll-out counts as all.
        cache: estimate of each prefix, by its digest.
        stats: numbers of the last call, for the log.
    """

    tools: Tools
    hard: bool = False
    cache: dict[str, float | None] = field(default_factory=dict)
    stats: dict[str, float] = field(default_factory=dict)
    _random: random.Random = field(default_factory=lambda: random.Random(0), repr=False)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must keep: estimates that later steps take up, and the place in the random choice."""
        return {"cache": self.cache, "random": self._random.getstate()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a checkpoint was.

        Args:
            state: what `state_dict` gave.
        """
        self.cache = dict(state["cache"])
        self._random.setstate(state["random"])

    def forget(self) -> None:
        """Drop the estimates of a policy that has changed."""
        if self.tools.policy_rolls_out or len(self.cache) > MOST_CACHED:
            self.cache.clear()

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        steps: Sequence[Sequence[Step]],
        *,
        prompt_ids: Sequence[Ids],
        completion_ids: Sequence[Ids],
        **columns: Any,
    ) -> StepRewards:
        """Reward the steps of B completions.

        Args:
            prompts: B prompts.
            completions: B completions.
            steps: for each completion its steps.
            prompt_ids: token ids of each prompt.
            completion_ids: token ids of each completion.
            columns: columns of the dataset, for the check of the answer.

        Returns:
            Rewards of the steps of each completion.
        """
        whole = self._right(prompts, completions, columns, range(len(prompts)))

        def key(row: int, step: Step) -> str:
            gold = str(columns["answer"][row]) if "answer" in columns else ""
            # The ids themselves of many long prefixes would fill memory and checkpoints
            return digest([gold, [*prompt_ids[row]], [*completion_ids[row][: step.token + 1]]])

        prefixes = {
            key(row, step): (row, step) for row, of_row in enumerate(steps) for step in of_row if not step.is_last
        }
        wanted = {prefix: place for prefix, place in prefixes.items() if prefix not in self.cache}
        self._estimate(wanted, prompts, completions, prompt_ids, completion_ids, columns)
        self.stats["reused"] = float(len(prefixes) - len(wanted))
        return [
            [whole[row] if step.is_last else self.cache.get(key(row, step)) for step in of_row]
            for row, of_row in enumerate(steps)
        ]

    def _estimate(
        self,
        wanted: dict[str, tuple[int, Step]],
        prompts: Sequence[Any],
        completions: Sequence[Any],
        prompt_ids: Sequence[Ids],
        completion_ids: Sequence[Ids],
        columns: Mapping[str, Any],
    ) -> None:
        room = {key: self.tools.max_completion_length - step.token - 1 for key, (_, step) in wanted.items()}
        chosen = self._within_budget(room)
        starts = {key: list(completion_ids[row][: step.token + 1]) for key, (row, step) in wanted.items()}
        count = self.tools.rollouts
        drawn = self.tools.continue_from(
            [[*prompt_ids[wanted[key][0]], *starts[key]] for key in chosen], count, [room[key] for key in chosen]
        )
        rows = [wanted[key][0] for key in chosen for _ in range(count)]
        ids = [[*starts[key], *more] for key, group in zip(chosen, drawn, strict=True) for more in group]
        # transformers takes an empty batch for one empty row
        texts = self.tools.tokenizer.batch_decode(ids, skip_special_tokens=True) if ids else []
        solutions = [
            text if isinstance(completions[row], str) else [{"role": "assistant", "content": text}]
            for row, text in zip(rows, texts, strict=True)
        ]
        right = self._right([prompts[row] for row in rows], solutions, columns, rows)
        for place, key in enumerate(chosen):
            known = [value for value in right[place * count : (place + 1) * count] if value is not None]
            pooled = max(known, default=0.0) if self.hard else sum(known) / max(len(known), 1)
            self.cache[key] = pooled if known else None
        self.stats = {
            "rollout_tokens": float(sum(len(more) for group in drawn for more in group)),
            "estimated": float(len(chosen)),
            "left_out": float(len(wanted) - len(chosen)),
        }

    def _within_budget(self, room: dict[str, int]) -> list[str]:
        """Prefixes whose longest possible roll-outs fit, a random choice where not all do."""
        budget = self.tools.token_budget
        if budget is None:
            return list(room)
        chosen, left = set(), budget
        for key in self._random.sample(list(room), len(room)):
            cost = self.tools.rollouts * max(room[key], 0)
            if cost <= left:
                chosen.add(key)
                left -= cost
        # In the order in which they came, so that neighbours share their beginnings
        return [key for key in room if key in chosen]

    def _right(
        self, prompts: Sequence[Any], completions: Sequence[Any], columns: Mapping[str, Any], rows: Sequence[int]
    ) -> list[float | None]:
        if not completions:
            return []
        given = {
            name: [column[row] for row in rows] if isinstance(column, list) else column
            for name, column in columns.items()
        }
        scores = checked(self.tools.check)(prompts=list(prompts), completions=list(completions), **given)  # type: ignore[operator]
        return [None if score is None else float(score > 0.5) for score in scores]


PROCESS_REWARDS: dict[str, Callable[[Tools], ProcessReward]] = {
    "calculations": lambda tools: calculations,
    "rollouts_soft": lambda tools: RolloutReward(tools, hard=False),
    "rollouts_hard": lambda tools: RolloutReward(tools, hard=True),
    "model": lambda tools: load_process_model(str(tools.model), tools.device),
}

# What the line with the final answer is.
ANSWER_STEPS = ("scored", "outcome", "none")
