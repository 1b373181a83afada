"""`GRPOExtTrainer`: a drop-in for `trl.GRPOTrainer`, made of short overrides that hand over to the rooms below."""

import math
from typing import Any

import torch
from torch import Tensor

from grpo_ext import compat
from grpo_ext.checks import check_dataset, check_given, check_output_dir, check_reward_columns, check_size
from grpo_ext.config import GRPOExtConfig
from grpo_ext.objective import Batch
from grpo_ext.ops.advantages import effective_samples, weight_sums
from grpo_ext.ops.aggregation import Window
from grpo_ext.ops.kl import KL_CONTROLLERS
from grpo_ext.ops.masking import masked_sum
from grpo_ext.rewards.checked import checked
from grpo_ext.rollouts.checked import checked_rollouts
from grpo_ext.trainer.advantages import beside_text
from grpo_ext.trainer.grouped import row_weights
from grpo_ext.trainer.resume import STATE_FILE
from grpo_ext.trainer.saving import SavingTrainer
from grpo_ext.trainer.shared import balanced_order

__all__ = ["STATE_FILE", "GRPOExtTrainer"]


class GRPOExtTrainer(SavingTrainer):
    """TRL's `GRPOTrainer` with the objectives, advantages and checks of grpo_ext.

    Takes the arguments of `trl.GRPOTrainer`. With a `GRPOExtConfig` whose own fields are unset (or with TRL's
    `GRPOConfig` values in it), TRL's advantages and TRL's loss run. Our scorer makes their log-probabilities on a CPU,
    and on a GPU with `scoring` "tree"; where it does not serve, TRL's forward pass does.

    Raises:
        ValueError: a dataset, reward function or option that cannot work, in one sentence, before anything runs.
        OSError: `output_dir` cannot be written to.
    """

    _name = "GRPOExt"

    def __init__(
        self, model: Any, reward_funcs: Any = None, args: GRPOExtConfig | None = None, *rest: Any, **kwargs: Any
    ) -> None:
        args = GRPOExtConfig(output_dir="grpo_ext_output") if args is None else args
        if not isinstance(args, GRPOExtConfig):
            raise TypeError(f"`args` is a {type(args).__name__}; GRPOExtTrainer takes a grpo_ext.GRPOExtConfig.")
        # Fourth and fifth in TRL's signature; an environment may own the prompts
        given = {**dict(zip(("train_dataset", "eval_dataset"), rest, strict=False)), **kwargs}
        for name in ("train_dataset", "eval_dataset"):
            check_dataset(given.get(name), name, args.group_by, prompt=kwargs.get("environment_factory") is None)
        check_size(given.get("train_dataset"), "train_dataset", args.generation_batch_size // args.num_generations)
        check_given(args, model, given)
        check_output_dir(args.output_dir)
        if kwargs.get("rollout_func") is not None:
            kwargs["rollout_func"] = checked_rollouts(kwargs["rollout_func"])
        if reward_funcs is not None:
            many = reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]
            # A rollout function may add columns of its own
            if kwargs.get("rollout_func") is None:
                check_reward_columns(many, given.get("train_dataset"), "train_dataset")
            reward_funcs = [checked(function, finite=False) for function in many]
        self._objective = args.objective()
        self._loss_is_checked = False
        # Sum of the KL over the tokens of the step, and their number, of all processes
        self._kl_of_step: Tensor | float = 0.0
        super().__init__(model, reward_funcs, args, *rest, **kwargs)

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        buffered = self._buffered_inputs
        if not self.model.training or buffered is None or buffered is before:
            return inputs
        self._log_teaching(buffered)
        if not self._may_regroup(buffered):
            return inputs
        # Within one optimiser step the order of rows changes nothing; across steps it would, so rows stay in theirs.
        size = min(self.args.gradient_accumulation_steps, len(buffered))
        windows = [buffered[i : i + size] for i in range(0, len(buffered), size)]
        self._buffered_inputs = [part for window in windows for part in self._regrouped(window)]
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def train(self, *args: Any, **kwargs: Any) -> Any:
        # Of a step that an earlier run left in its middle
        self._kl_of_step = 0.0
        return super().train(*args, **kwargs)

    def _regrouped(self, window: list[dict[str, Any]]) -> list[dict[str, Any]]:
        keys = torch.cat([part["group_ids"] for part in window])
        tokens = torch.cat([part["completion_mask"].sum(1) for part in window])
        return compat.regroup(window, keys, len(window), balanced_order(keys, tokens))

    def _log_teaching(self, buffered: list[dict[str, Any]]) -> None:
        """How many completions of a generation teach, and the share of groups that do not, over all processes."""
        advantages, mask, groups = (
            torch.cat([part[name] for part in buffered]) for name in ("advantages", "completion_mask", "group_ids")
        )
        sums = torch.vmap(weight_sums)(advantages[:, None], mask[:, None])
        everyone = self.accelerator.gather(torch.cat([sums, groups[:, None]], dim=1))
        ids, group_of_row = everyone[:, 2].unique(return_inverse=True)
        taught = torch.zeros_like(ids).index_add_(0, group_of_row, everyone[:, 0])
        metrics = self._metrics["train"]
        metrics["effective_samples"].append(effective_samples(everyone[:, :2].sum(0)).item())
        metrics["dead_groups"].append((taught == 0).float().mean().item())

    def _may_regroup(self, buffered: list[dict[str, Any]]) -> bool:
        """Whether the loss of an optimiser step is the same however its rows are split into micro-batches."""
        depends = (
            self._objective.aggregation == "part_token_mean"
            or self.top_entropy_quantile < 1.0
            or self.entropy_coef != 0.0
            or self.use_adaptive_entropy
            or self.aux_loss_enabled
            or self._has_dropout()
        )
        # Where neither is a multiple of the other, steps begin and end within the windows of a generation
        shorter, longer = sorted((self.args.gradient_accumulation_steps, self.args.steps_per_generation))
        whole_steps = longer % shorter == 0
        return whole_steps and not depends and "pixel_values" not in buffered[0]

    # Loss

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        self._await_forward(inputs)
        if not self.args.uses_own_objective:
            return self._noted(super()._compute_loss(model, inputs))
        batch, aux_loss = self._batch(model, inputs)
        loss, values = self._objective(batch, self._window(inputs), self.beta)
        if aux_loss is not None:
            loss = loss + self.router_aux_loss_coef * aux_loss / self._parts()
        self._record(values, batch.mask)
        return self._noted(loss)

    def _batch(self, model: Any, inputs: dict[str, Any]) -> tuple[Batch, Tensor | None]:
        """The micro-batch as plain tensors, after the forward pass of the policy."""
        mask = inputs["completion_mask"] * inputs.get("tool_mask", 1)
        logps, entropies, aux_loss = self._get_per_token_logps_and_entropies(
            model,
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
            torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
            inputs["completion_ids"].size(1),
            compute_entropy=True,
            compute_aux_loss=self.aux_loss_enabled,
            **beside_text(inputs),
        )
        keep = entropy_mask = None
        if self.top_entropy_quantile < 1.0:
            keep = entropy_mask = self.get_high_entropy_mask(entropies, mask, 1 - self.top_entropy_quantile)
        on_policy = self._on_policy(inputs, logps.detach(), mask)
        if on_policy is not None:
            keep = on_policy if keep is None else keep * on_policy
        batch = Batch(
            logps=logps,
            advantages=inputs["advantages"],
            mask=mask,
            old_logps=inputs.get("old_per_token_logps"),
            ref_logps=inputs.get("ref_per_token_logps"),
            entropies=entropies,
            sampling_ratio=inputs.get("importance_sampling_ratio"),
            keep=keep,
            entropy_mask=entropy_mask,
            row_weights=row_weights(inputs, self.num_generations),
        )
        return batch, aux_loss

    def _on_policy(self, inputs: dict[str, Any], logps: Tensor, mask: Tensor) -> Tensor | None:
        """1 for completions that the policy has not moved too far away from, where TRL's config asks for it."""
        if self.off_policy_mask_threshold is None:
            return None
        advantages = inputs["advantages"]
        return self.get_off_policy_mask(
            advantages=advantages.unsqueeze(1) if advantages.dim() == 1 else advantages,
            per_token_logps=logps,
            sampling_per_token_logps=inputs.get("sampling_per_token_logps", inputs.get("old_per_token_logps", logps)),
            mask=mask,
            off_policy_threshold=self.off_policy_mask_threshold,
        )

    def _parts(self) -> float:
        # In evaluation a batch is neither split nor accumulated
        return float(self.current_gradient_accumulation_steps) if self.model.training else 1.0

    def _window(self, inputs: dict[str, Any]) -> Window:
        """Totals of the accumulation window on one process, so that averaging over processes gives the whole."""
        parts = self._parts()
        # TRL counts the tokens of the generation batch; a window is its share of the steps
        tokens = inputs["num_items_in_batch"].clamp(min=1.0) / self.accelerator.num_processes
        if self.model.training:
            tokens = tokens * parts / self.args.steps_per_generation
        return Window(
            rows=len(inputs["completion_ids"]) * parts,
            tokens=tokens,
            parts=parts,
            group_size=self._group_size,
            max_completion_length=self.max_completion_length,
        )

    def _record(self, values: dict[str, Tensor], mask: Tensor) -> None:
        """Log per-token values as means over all processes, under TRL's names."""
        metrics = self._mode_metrics
        for name, value in values.items():
            weight = mask if value.size(1) > 1 else torch.ones_like(value)
            totals = torch.stack([masked_sum(value, weight), weight.sum().to(value.dtype)])
            totals = self.accelerator.reduce(totals, reduction="sum")
            if name == "kl" and self.model.training:
                self._kl_of_step = self._kl_of_step + totals
            label = f"{name}_mean" if name.startswith("clip_ratio/") else name
            metrics[label].append((totals[0] / totals[1].clamp(min=1.0)).item())
            if name in ("clip_ratio/low", "clip_ratio/high"):
                rows = self.accelerator.gather(masked_sum(value, weight, dim=1) / weight.sum(1))
                extreme = compat.nanmin(rows) if name.endswith("low") else compat.nanmax(rows)
                metrics[f"{name}_{'min' if name.endswith('low') else 'max'}"].append(extreme.item())

    # Steps and state

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        before = self._losses
        loss = super().training_step(*args, **kwargs)
        if not self._loss_is_checked:
            self._loss_is_checked = True
            self._check_loss_ran(self._losses - before)
        if self.accelerator.sync_gradients:
            self._follow_kl()
        return loss

    def _follow_kl(self) -> None:
        """Move beta by the KL a token of the step's rows, however they were split."""
        measured, self._kl_of_step = self._kl_of_step, 0.0
        controller = self.args.kl_controller
        if controller in (None, "fixed") or isinstance(measured, float):
            return
        kl = (measured[0] / measured[1].clamp(min=1.0)).item()
        # Such a step is skipped, and beta would never be a number again
        if math.isfinite(kl):
            self.beta = KL_CONTROLLERS[controller](self.beta, kl, float(self.args.kl_target or 0.0))
        self._metrics["train"]["beta"].append(self.beta)

    def _check_loss_ran(self, times: int) -> None:
        """After the first micro-batch. With nothing set on TRL's own trainer the loss is a subclass's to replace."""
        if times != 1 and (self.args.uses_own_objective or compat.GENERATED):
            raise RuntimeError(
                f"The first micro-batch ran the configured objective {times} times in place of once, so something "
                f"else was trained: something replaced `_compute_loss` or `compute_loss` of {type(self).__name__}; "
                "remove that override."
            )
