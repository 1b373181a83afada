"""The class that ours is built upon: TRL's `GRPOTrainer`, or the one that Unsloth writes in its place on a GPU."""

import logging
from dataclasses import fields
from typing import Any

from peft import PeftModel
from torch import Tensor
from trl import GRPOTrainer

from grpo_ext.compat import GENERATED, UNSLOTH_FIELDS
from grpo_ext.config import GRPOExtConfig
from grpo_ext.models.reference import REFERENCE, renew_reference

logger = logging.getLogger("grpo_ext")

# Methods that Unsloth's own loss goes past, so that another one is honoured only by the loss that it replaces.
PASSED_OVER = ("_compute_loss", "_get_per_token_logps_and_entropies")
# Fields that Unsloth fills in for a later evaluation, with no check of ours that depends on them.
EVALUATION = (
    "bf16_full_eval",
    "eval_accumulation_steps",
    "eval_steps",
    "eval_strategy",
    "fp16_full_eval",
    "per_device_eval_batch_size",
)
# Values of a field that mean the same; Unsloth writes vLLM's spelling.
SAME = {"top_k": (None, 0, -1)}


class StockTrainer(GRPOTrainer):
    """TRL's trainer, also over Unsloth's CPU back end, that knows how often the configured loss ran.

    An override may go past that loss without a word.

    Attributes:
        fuses_loss: whether the loss is Unsloth's own, which scores completions itself.
    """

    fuses_loss = False
    _losses = 0

    @property
    def _plain_tokenizer(self) -> Any:
        """The tokenizer, which a processor of several kinds of input holds inside."""
        processor: Any = self.processing_class
        return getattr(processor, "tokenizer", processor)

    @property
    def _group_size(self) -> int:
        """Completions of a prompt, in training or in evaluation, whichever runs."""
        return self.num_generations if self.model.training else self.num_generations_eval

    @property
    def _mode_metrics(self) -> dict[str, list[float]]:
        """Values for the next row of the log, of training or of evaluation, whichever runs."""
        return self._metrics["train" if self.model.training else "eval"]

    def _noted(self, loss: Tensor) -> Tensor:
        """The loss, counted.

        Raises:
            RuntimeError: it has no gradient in training.
        """
        self._losses += 1
        if self.model.training and not loss.requires_grad:
            raise RuntimeError("The loss has no gradient: something detached it or runs without gradients.")
        return loss


class UnslothTrainer(StockTrainer):
    """Unsloth's generated trainer, which runs its fused loss for TRL's objectives and ours for all others.

    Its `compute_loss` never calls `_compute_loss`, scores completions in rows of another width than TRL's, and ignores
    the gradient that arrives from what is done with its loss. So a run takes one of two ways as a whole:

    - fused: an objective that TRL has, rows as Unsloth makes them. We own what goes in: rewards, advantages, groups.
    - ours: `compute_loss` leads to `_compute_loss` on log-probabilities with gradients in TRL's (B, T) shape, from
      Unsloth's forward pass (`grpo_ext.scoring.scorer.score_left_aligned`).

    Raises:
        TypeError: a subclass has a method that Unsloth would call in the place of ours.
        ValueError: a field means another thing under Unsloth, or the pad token ends a completion.
        RuntimeError: at the first step, when something keeps the configured loss from being run.
    """

    args: GRPOExtConfig
    _told_of_padding = False

    def __init__(self, model: Any, reward_funcs: Any, args: GRPOExtConfig, *rest: Any, **kwargs: Any) -> None:
        if any("_get_per_token_logps" in vars(cls) for cls in type(self).__mro__):
            raise TypeError(
                f"{type(self).__name__} has a method `_get_per_token_logps`, which Unsloth's trainer would call "
                "instead of its own scoring; rename it."
            )
        self._check_model(model, args, kwargs)
        for name, value in UNSLOTH_FIELDS.items():
            setattr(args, name, getattr(args, name, value))
        asked = {spec.name: getattr(args, spec.name) for spec in fields(args)}
        if args.beta != 0.0 and isinstance(model, PeftModel) and REFERENCE not in model.peft_config:
            # TRL's trainer begins so; Unsloth's takes the base model, without what the adapter has learned before
            renew_reference(model, model.active_adapter)
        tokenizer = kwargs.get("processing_class")
        side = None if tokenizer is None else tokenizer.padding_side
        super().__init__(model, reward_funcs, args, *rest, **kwargs)
        if tokenizer is not None:
            # It belongs to the caller, who goes on to use it
            tokenizer.padding_side = side
        self._read_back(asked)
        self._check_pad()
        reason = self._unfused()
        self.fuses_loss = reason is None
        logger.info("Loss: %s.", "Unsloth's own, fused" if reason is None else f"ours, because {reason}")

    # What goes in

    def _check_model(self, model: Any, args: GRPOExtConfig, kwargs: dict[str, Any]) -> None:
        if isinstance(model, str):
            raise ValueError(
                f"`model` is the name {model!r}, which Unsloth's trainer cannot load; give it the model of "
                "grpo_ext.load_policy(..., backend='unsloth')."
            )
        if kwargs.get("peft_config") is not None:
            raise ValueError(
                "`peft_config` is given, which Unsloth's trainer drops without a word; put the adapter on with "
                "grpo_ext.load_policy(..., backend='unsloth', lora_r=...)."
            )
        if getattr(model, "for_training", None) is None:
            raise ValueError(
                f"The policy is a {type(model).__name__} that Unsloth has not loaded, so its trainer cannot switch it "
                "between training and inference; load it with grpo_ext.load_policy(..., backend='unsloth')."
            )
        if getattr(model, "vllm_engine", None) is not None and not (args.use_vllm and args.vllm_sync == "adapter"):
            raise ValueError(
                "The policy carries a vLLM engine (fast_inference=True), which Unsloth's trainer generates with "
                f"whatever the config says, and the config has `use_vllm` {args.use_vllm} and `vllm_sync` "
                f"{args.vllm_sync!r}; set use_vllm=True and vllm_sync='adapter', or load it without the engine."
            )

    def _read_back(self, asked: dict[str, Any]) -> None:
        """See that the config still says what it said; what only an evaluation reads is put back."""
        for name, value in asked.items():
            found = getattr(self.args, name)
            if found == value:
                continue
            same = SAME.get(name, ())
            # Some values are lists, which no set holds
            if name not in EVALUATION and not (value in same and found in same):
                raise ValueError(f"`{name}` is {value!r}, but Unsloth made it {found!r}; set {name}={found!r}.")
            setattr(self.args, name, value)

    def _check_pad(self) -> None:
        tokenizer = self._plain_tokenizer
        if tokenizer.pad_token_id in self.eos_token_ids:
            raise ValueError(
                f"The pad token {tokenizer.pad_token!r} also ends a completion, and Unsloth takes what is not padding "
                "for the completion, so its end would be left out of the loss; use the tokenizer of "
                "grpo_ext.load_policy, or set another pad token."
            )

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        if not self.fuses_loss or self._told_of_padding:
            return output
        pads = output["completion_ids"].eq(self._plain_tokenizer.pad_token_id)
        sampled = int((pads & output["completion_mask"].bool()).sum())
        if sampled:
            self._told_of_padding = True
            logger.warning(
                "Loss: the policy sampled the pad token %d times in a generation, and Unsloth's own loss leaves such "
                "tokens out; not told again.",
                sampled,
            )
        return output

    # Which way

    def _unfused(self) -> str | None:
        """Why the loss of this run is not Unsloth's fused one, as the end of a sentence, or None where it is."""
        for name in PASSED_OVER:
            if getattr(type(self), name).__module__.split(".")[0] not in ("grpo_ext", GRPOTrainer.__module__):
                return f"{type(self).__name__} overrides `{name}`"
        if self.args.uses_own_objective:
            return "TRL has no such objective"
        if self.args.process_reward is not None:
            return "each token has an advantage of its own"
        if self.args.resampling is not None:
            return "resampling joins rows of several generations"
        if self.args.use_adaptive_entropy:
            return "Unsloth's has no adaptive entropy bonus"
        if self.args.top_entropy_quantile < 1.0:
            return "Unsloth's picks other tokens of high entropy than TRL's"
        return None

    def _get_per_token_logps_and_entropies(self, *args: Any, compute_aux_loss: bool = False, **kwargs: Any) -> Any:
        # Unsloth's seventh argument stands where TRL has this one, and leaves the scores to its loss
        return super()._get_per_token_logps_and_entropies(*args, compute_efficient=compute_aux_loss, **kwargs)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        if not self.fuses_loss:
            return self._compute_loss(model, inputs)
        return self._noted(super().compute_loss(model, inputs, return_outputs, num_items_in_batch))


HostTrainer: Any = UnslothTrainer if GENERATED else StockTrainer
