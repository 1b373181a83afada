"""The trainer's groups: made by our own decoding where it serves, by TRL's elsewhere."""

import logging
from typing import Any

import torch
from torch import Tensor

from grpo_ext.rollouts.local import LocalGroups, undecodable
from grpo_ext.trainer.sampler import SamplerTrainer
from grpo_ext.trainer.sharded import gathered

logger = logging.getLogger("grpo_ext")


class GroupTrainer(SamplerTrainer):
    """Replaces the loop in transformers' `generate`, and hands the weights of a search on to the loss."""

    _groups_made: LocalGroups | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        strategy = self.args.group_generation
        reason = self._not_decoded_here()
        if strategy != "sampling":
            self._check_search(strategy, reason)
            logger.info(
                "Groups: %s; beams are not samples of the policy, so %s.",
                strategy,
                "each is weighted by its inclusion probability"
                if self.args.has_inclusion_weights
                else "the gradient is not an unbiased estimate of the expected reward's",
            )
        elif reason is not None and not self.use_vllm:
            logger.info("Groups: sampled by transformers' own loop, because %s %s.", self._name_of_model(), reason)
        self._decodes_here = reason is None

    def _name_of_model(self) -> str:
        return type(self._bare(self.model)).__name__

    def _not_decoded_here(self) -> str | None:
        """Why decoding is left to TRL, as the end of a sentence that begins with the model, or None."""
        if self.use_vllm:
            return "generates with vLLM"
        if type(self._bare(self.model)).forward.__module__.startswith("unsloth"):
            return "has Unsloth's own decoding"
        if self.shards_weights and not (self.accelerator.is_fsdp2 and self.args.ds3_gather_for_generation):
            return "has sharded weights"
        if self.use_transformers_continuous_batching:
            return "generates by continuous batching"
        if self.args.cache_implementation not in (None, "dynamic"):
            return f"keeps its cache as {self.args.cache_implementation!r}"
        if any(adapter.is_prompt_learning for adapter in self._adapters(self.model)):
            return "has an adapter that acts on prompts"
        # TRL generates with dropout on, and completions that share their prompt would share its mask
        if self.args.group_generation == "sampling" and self._has_dropout():
            return "has dropout"
        return undecodable(self._bare(self.model))

    def _check_search(self, strategy: str, reason: str | None) -> None:
        if reason is not None and not self.use_vllm:
            raise ValueError(
                f"`group_generation` is {strategy!r}, but {self._name_of_model()} {reason}; use group_generation="
                "'sampling' or a model with plain full attention."
            )
        if self.tools or self.rollout_func is not None:
            raise ValueError(
                f"`group_generation` is {strategy!r}, but with tools, environments or a `rollout_func` a completion "
                "is made in turns, which a search cannot rank; use group_generation='sampling'."
            )
        rows = self.args.per_device_train_batch_size * self.args.steps_per_generation
        if self.accelerator.num_processes > 1 and rows % self.num_generations:
            raise ValueError(
                f"`group_generation` is {strategy!r}, which makes a group on one process, but a process has {rows} "
                f"completions, not a multiple of `num_generations` {self.num_generations}."
            )

    def _generate_single_turn(self, prompt_ids: list[list[int]], images: Any, *args: Any, **kwargs: Any) -> Any:
        self._groups_made = None
        if not self._decodes_here or images is not None:
            return super()._generate_single_turn(prompt_ids, images, *args, **kwargs)
        strategy = self.args.group_generation if self.model.training else "sampling"
        groups = LocalGroups(strategy, self.args.group_size())
        with gathered(self.model, self.accelerator.device), groups.within(self._bare(self.model)):
            result = super()._generate_single_turn(prompt_ids, images, *args, **kwargs)
        self._groups_made = groups
        return result

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        made = self._groups_made.made if self._groups_made is not None else None
        if made is not None and made.log_weights is not None and made.logps is not None:
            output["log_weights"] = made.log_weights.flatten()
            output["completion_logps"] = made.logps.flatten()
        return output


def row_weights(inputs: dict[str, Any], group_size: int) -> Tensor | None:
    """(B,) G · w, so that the mean over a group's rows is the weighted sum over them.

    Args:
        inputs: a micro-batch.
        group_size: G.

    Returns:
        The weights, or None where all rows weigh the same.
    """
    weights = inputs.get("log_weights")
    return None if weights is None else group_size * torch.exp(weights)
