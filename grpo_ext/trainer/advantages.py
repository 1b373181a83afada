"""The trainer's advantages: TRL's, or ours from the rewards that TRL has gathered."""

from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from grpo_ext.objective import Objective
from grpo_ext.ops.advantages import advantages, advantages_per_reward
from grpo_ext.ops.kl import KL_ESTIMATORS
from grpo_ext.ops.masking import masked_sum
from grpo_ext.trainer.scored import ScoredTrainer


class AdvantageTrainer(ScoredTrainer):
    """Replaces TRL's advantages where the config asks for others, and marks the group of each row."""

    _objective: Objective
    _rewards_per_func: Tensor | None = None
    beta: float

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.args.uses_own_advantages:
            # TRL still computes its own, which ours replace; it knows three of our scales
            self.scale_rewards = "none"

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        self._rewards_per_func = super()._calculate_rewards(*args, **kwargs)
        return self._rewards_per_func

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        groups = self._groups(inputs)
        local = slice(self.accelerator.process_index * len(inputs), (self.accelerator.process_index + 1) * len(inputs))
        if self.args.uses_own_advantages:
            everyone = self._advantages(output, groups)
            output["advantages"] = everyone[local]
            logged = self._logs["advantages"]
            kept = list(logged)[: max(0, len(logged) - len(everyone))]
            logged.clear()
            logged.extend(kept + everyone.tolist())
        output["group_ids"] = groups[local]
        return output

    def _groups(self, inputs: list[dict[str, Any]]) -> Tensor:
        """(R,) group index of each row of all processes."""
        size = self.num_generations if self.model.training else self.num_generations_eval
        rows = len(inputs) * self.accelerator.num_processes
        if self.args.group_by is None:
            return torch.arange(rows, device=self.accelerator.device) // size
        keys = gather_object([str(row[self.args.group_by]) for row in inputs])
        index = {key: i for i, key in enumerate(dict.fromkeys(keys))}
        return torch.tensor([index[key] for key in keys], device=self.accelerator.device)

    def _advantages(self, output: dict[str, Any], groups: Tensor) -> Tensor:
        """(R,) advantages of all processes from the rewards that TRL has just gathered."""
        rewards_per_func = self._rewards_per_func
        assert rewards_per_func is not None
        weights = self.reward_weights.to(rewards_per_func.device)
        axes = (self.args.advantage_baseline or "mean", self.args.scale_rewards, self.args.advantage_eps)
        if self.multi_objective_aggregation == "normalize_then_sum":
            return advantages_per_reward(rewards_per_func, weights, groups, *axes)
        rewards = (rewards_per_func * weights).nansum(dim=1)
        rewards = rewards.masked_fill(rewards_per_func.isnan().all(dim=1), torch.nan)
        if self.args.kl_in == "reward":
            rewards = rewards - self.beta * self.accelerator.gather(self._sequence_kl(output))
        return advantages(rewards, groups, *axes)

    @torch.no_grad()
    def _sequence_kl(self, output: dict[str, Any]) -> Tensor:
        """(B,) KL of each completion at the time it was sampled, summed over its tokens, in nats."""
        logps = output.get("old_per_token_logps")
        if logps is None:
            logps, _, _ = self._get_per_token_logps_and_entropies(
                self.model,
                torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1),
                torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1),
                output["completion_ids"].size(1),
                batch_size=self.args.per_device_train_batch_size,
            )
        x = logps - output["ref_per_token_logps"]
        kl = KL_ESTIMATORS[self._objective.kl_estimator](x, torch.ones_like(x))
        mask = output["completion_mask"] * output.get("tool_mask", 1)
        kl_sum = masked_sum(kl, mask, dim=1)
        self._metrics["train" if self.model.training else "eval"]["kl_in_reward"].append(
            self.accelerator.gather(kl_sum).mean().item()
        )
        return kl_sum
