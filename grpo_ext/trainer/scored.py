"""The trainer's log-probabilities: our scorer where it serves, TRL's forward elsewhere."""

import logging
from typing import Any

import torch
from peft import PeftConfig
from torch import Tensor
from transformers import PreTrainedModel

from grpo_ext.compat import GENERATED
from grpo_ext.config import GRPOExtConfig
from grpo_ext.scoring.attention import BACKENDS, unsupported, use_tree_attention
from grpo_ext.scoring.head import Head
from grpo_ext.scoring.scorer import SCORERS, give_hidden_states, make_head
from grpo_ext.trainer.vllm import VLLMTrainer

logger = logging.getLogger("grpo_ext")

Scores = tuple[Tensor, Tensor | None]


class ScoredTrainer(VLLMTrainer):
    """`trl.GRPOTrainer` that takes log-probabilities and entropies from `grpo_ext.scoring`."""

    args: GRPOExtConfig

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        scored = [self._bare(model) for model in (self.model, self.ref_model) if model is not None]
        self._scorer = self._make_scorer(scored)
        backend = self.args.scoring_attention
        if backend is not None and not BACKENDS[backend].serves(self.accelerator.device):
            raise ValueError(
                f"`scoring_attention` is {backend!r}, which does not run on {self.accelerator.device.type}; use "
                "'sdpa' or leave it unset."
            )
        if self._scorer == "tree":
            self._prepare_tree(scored)
        idle = [name for name in ("scoring_attention", "scoring_tokens") if getattr(self.args, name) is not None]
        if self._scorer != "tree" and idle:
            logger.warning("Scoring: no tree is scored in this run, so `%s` does nothing.", "` and `".join(idle))

    def _make_scorer(self, models: list[PreTrainedModel]) -> str:
        """A row of `SCORERS`; the tree is given up later where it does not serve."""
        if not GENERATED:
            for model in models:
                give_hidden_states(model)
            return "padded" if self.args.scoring == "padded" else "tree"
        if self.args.scoring == "tree":
            raise ValueError(
                "`scoring` is 'tree', but Unsloth's trainer runs Unsloth's own forward pass, which shares prompts in "
                "its own way; use scoring='auto'."
            )
        return "left_aligned"

    def _bare(self, model: Any) -> PreTrainedModel:
        model = self.accelerator.unwrap_model(model)
        return model.get_base_model() if getattr(model, "peft_config", None) else model

    def _adapters(self, model: Any) -> list[PeftConfig]:
        return list((getattr(self.accelerator.unwrap_model(model), "peft_config", None) or {}).values())

    def _has_dropout(self) -> bool:
        return any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in self.model.modules())

    # Which path

    def _prepare_tree(self, models: list[PreTrainedModel]) -> None:
        reason = self._not_a_tree(models)
        if reason is not None:
            self._leave_tree(reason)
            return
        try:
            for model in models:
                use_tree_attention(model)
        except NotImplementedError as error:
            self._leave_tree(str(error))

    def _not_a_tree(self, models: list[PreTrainedModel]) -> str | None:
        """Why the run as a whole cannot be scored over a tree, or None."""
        if self.shards_weights:
            return "has sharded weights"
        if self.use_transformers_continuous_batching:
            return "generates by continuous batching, which knows transformers' own attention only"
        if self.aux_loss_enabled:
            return "has a router loss"
        for adapter in self._adapters(self.model):
            if adapter.is_prompt_learning or getattr(adapter, "alora_invocation_tokens", None):
                return f"has a {adapter.peft_type} adapter, which acts on rows"
        # Rows that share a token would share its mask
        if self._has_dropout():
            return "has dropout"
        if self.accelerator.device.type != "cpu" and self.args.scoring == "auto":
            return f"runs on {self.accelerator.device.type}, where `--scoring tree` must be asked for"
        return next(
            (reason for model in models if (reason := unsupported(model.config.get_text_config())) is not None), None
        )

    def _leave_tree(self, reason: str) -> None:
        name = type(self._bare(self.model)).__name__
        if self.args.scoring == "tree":
            raise ValueError(f"`scoring` is 'tree', but {name} {reason}; use scoring='auto' or 'padded'.")
        logger.info("Scoring: padded, because %s %s.", name, reason)
        self._scorer = "padded"

    def _scores_itself(self, model: Any, compute_aux_loss: bool, extra: dict[str, Any]) -> bool:
        """Whether our scorer serves this call; with images, sharded weights or router losses TRL's forward does."""
        return not (
            # Unsloth's own loss reads rows of another width
            self.fuses_loss
            or compute_aux_loss
            or any(value is not None for value in extra.values())
            or (self.accelerator.device.type != "cpu" and self._scorer == "padded")
            or self.shards_weights
            or any(adapter.is_prompt_learning for adapter in self._adapters(model))
        )

    # Scores

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **extra: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        if not self._scores_itself(model, compute_aux_loss, extra):
            if self._scorer == "tree":
                self._leave_tree("is given more than text")
            return super()._get_per_token_logps_and_entropies(
                model,
                input_ids,
                attention_mask,
                logits_to_keep,
                batch_size=batch_size,
                compute_entropy=compute_entropy,
                compute_aux_loss=compute_aux_loss,
                **extra,
            )
        head = make_head(self._bare(model), self.temperature, self.args.cast_lm_head_to_fp32)
        size = batch_size or len(input_ids)
        batch = (input_ids, attention_mask, logits_to_keep)
        return *self._score_rows(model, head, *batch, size, compute_entropy), None

    def _score(self, scorer: str, model: Any, head: Head, *batch: Any) -> Scores:
        options = {"backend": self.args.scoring_attention} if scorer == "tree" else {}
        with self.accelerator.autocast():
            return SCORERS[scorer](model, head, *batch, **options)

    def _score_rows(
        self, model: Any, head: Head, ids: Tensor, mask: Tensor, keep: int, size: int, entropy: bool
    ) -> Scores:
        """Scores of all rows, `size` at a time."""
        starts = range(0, len(ids), size)
        parts = [
            self._score(self._scorer, model, head, ids[i : i + size], mask[i : i + size], keep, entropy)
            for i in starts
        ]
        entropies = [part[1] for part in parts if part[1] is not None]
        return torch.cat([part[0] for part in parts]), torch.cat(entropies) if entropies else None
