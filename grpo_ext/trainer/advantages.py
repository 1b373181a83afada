"""The trainer's advantages: TRL's, or ours from the rewards that TRL has gathered."""

from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from grpo_ext.groups import Group, grouped
from grpo_ext.objective import Objective
from grpo_ext.ops.advantages import advantages, advantages_per_reward
from grpo_ext.ops.inclusion import advantages_without_replacement
from grpo_ext.ops.kl import KL_ESTIMATORS
from grpo_ext.ops.masking import masked_sum
from grpo_ext.trainer.guarded import GuardedTrainer

# What TRL's forward takes of a row beside its text
BESIDE_TEXT = (
    "pixel_values",
    "image_grid_thw",
    "num_images",
    "pixel_attention_mask",
    "spatial_shapes",
    "num_tiles",
    "image_sizes",
    "token_type_ids",
    "mm_token_type_ids",
    "image_position_ids",
)


def beside_text(rows: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a forward pass that rows with images have, and others have not.

    Args:
        rows: a generation or a micro-batch.

    Returns:
        Values by TRL's names.
    """
    return {name: rows[name] for name in BESIDE_TEXT if rows.get(name) is not None}


class AdvantageTrainer(GuardedTrainer):
    """Replaces TRL's advantages where the config asks for others, and marks the group of each row."""

    _objective: Objective
    # Of all processes, from the last generation
    _rewards_per_func: Tensor | None = None
    _inclusion: tuple[Tensor, ...] | None = None
    _kl_penalty: Tensor | None = None
    beta: float
    # Tokens of all completions that were generated for training so far, discarded ones too
    generated_tokens = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.args.uses_own_advantages:
            # TRL still computes its own, which ours replace; it knows three of our scales
            self.scale_rewards = "none"

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        self._rewards_per_func = super()._calculate_rewards(*args, **kwargs)
        return self._rewards_per_func

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        before = self.state.num_input_tokens_seen
        output = super()._generate_and_score_completions(inputs)
        groups, local = self._groups(inputs), self._local(len(inputs))
        if self.args.kl_in == "reward":
            self._kl_penalty = self.beta * self.accelerator.gather(self._sequence_kl(output))
        if "log_weights" in output:
            self._inclusion = tuple(
                self.accelerator.gather(output[name]) for name in ("completion_logps", "log_weights")
            )
        if self.args.uses_own_advantages:
            assert self._rewards_per_func is not None
            everyone = self._advantages(self._rewards_per_func, self._kl_penalty, groups)
            output["advantages"] = everyone[local]
            self._log_advantages(everyone)
        if self.model.training:
            # TRL counts tokens before it masks completions, and those of tools not at all
            prompts = int(self.accelerator.gather(output["prompt_mask"].sum()).sum())
            self.generated_tokens += self.state.num_input_tokens_seen - before - prompts
        output["group_ids"] = groups[local]
        return output

    def _log_advantages(self, everyone: Tensor) -> None:
        """Put (R,) advantages in the place of those that TRL has just added to its table of completions."""
        logged = self._logs["advantages"]
        kept = list(logged)[: max(0, len(logged) - len(everyone))]
        logged.clear()
        logged.extend(kept + everyone.tolist())

    def newest_groups(self) -> list[Group]:
        """The rows of TRL's table of completions by group, the best of a group first.

        Returns:
            The groups of the last generation; after an evaluation, its rows are among them until the next one.
        """
        logged = self._logs
        rewards = {name: logged["rewards"][name] for name in self.reward_func_names}
        columns = (logged["prompt"], logged["completion"], rewards, self.reward_weights.tolist())
        return grouped(*columns, logged["advantages"])

    def _local(self, rows: int) -> slice:
        """Rows of this process among those of all."""
        return slice(self.accelerator.process_index * rows, (self.accelerator.process_index + 1) * rows)

    def _groups(self, inputs: list[dict[str, Any]]) -> Tensor:
        """(R,) group index of each row of all processes."""
        size = self._group_size
        rows = len(inputs) * self.accelerator.num_processes
        if self.args.group_by is None:
            return torch.arange(rows, device=self.accelerator.device) // size
        keys = gather_object([str(row[self.args.group_by]) for row in inputs])
        index = {key: i for i, key in enumerate(dict.fromkeys(keys))}
        return torch.tensor([index[key] for key in keys], device=self.accelerator.device)

    def _total(self, rewards_per_func: Tensor) -> Tensor:
        """(R,) weighted sum of the rewards, NaN where no reward function applies."""
        rewards = (rewards_per_func * self.reward_weights.to(rewards_per_func.device)).nansum(dim=1)
        return rewards.masked_fill(rewards_per_func.isnan().all(dim=1), torch.nan)

    def _advantages(self, rewards_per_func: Tensor, kl_penalty: Tensor | None, groups: Tensor) -> Tensor:
        """(R,) advantages from (R, K) rewards, in groups that may differ in size."""
        axes = (self.args.advantage_baseline or "mean", self.args.scale_rewards, self.args.advantage_eps)
        if self.multi_objective_aggregation == "normalize_then_sum":
            weights = self.reward_weights.to(rewards_per_func.device)
            return advantages_per_reward(rewards_per_func, weights, groups, *axes)
        rewards = self._total(rewards_per_func)
        rewards = rewards if kl_penalty is None else rewards - kl_penalty
        if self._inclusion is not None and self.model.training:
            # The config takes no scale with them
            return advantages_without_replacement(rewards, groups, *self._inclusion)
        return advantages(rewards, groups, *axes)

    @torch.no_grad()
    def _logps(self, model: Any, rows: dict[str, Any]) -> Tensor:
        """(B, T) log-probabilities of completions, without gradient."""
        logps, _, _ = self._get_per_token_logps_and_entropies(
            model,
            torch.cat([rows["prompt_ids"], rows["completion_ids"]], dim=1),
            torch.cat([rows["prompt_mask"], rows["completion_mask"]], dim=1),
            rows["completion_ids"].size(1),
            batch_size=self.args.per_device_train_batch_size,
            **beside_text(rows),
        )
        return logps

    @torch.no_grad()
    def _sequence_kl(self, output: dict[str, Any]) -> Tensor:
        """(B,) KL of each completion at the time it was sampled, summed over its tokens, in nats."""
        logps = output.get("old_per_token_logps")
        if logps is None:
            logps = self._logps(self.model, output)
        x = logps - output["ref_per_token_logps"]
        kl = KL_ESTIMATORS[self._objective.kl_estimator](x, torch.ones_like(x))
        mask = output["completion_mask"] * output.get("tool_mask", 1)
        kl_sum = masked_sum(kl, mask, dim=1)
        self._mode_metrics["kl_in_reward"].append(self.accelerator.gather(kl_sum).mean().item())
        return kl_sum
