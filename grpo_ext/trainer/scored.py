"""The trainer's log-probabilities: our scorer where it serves, TRL's forward elsewhere."""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from trl import GRPOTrainer

from grpo_ext.config import GRPOExtConfig
from grpo_ext.scoring.scorer import give_hidden_states, make_head, score


class ScoredTrainer(GRPOTrainer):
    """`trl.GRPOTrainer` that takes log-probabilities and entropies from `grpo_ext.scoring`."""

    args: GRPOExtConfig

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for scored in (self.model, self.ref_model):
            if scored is not None:
                give_hidden_states(self._bare(scored))

    def _bare(self, model: Any) -> PreTrainedModel:
        model = self.accelerator.unwrap_model(model)
        return model.get_base_model() if getattr(model, "peft_config", None) else model

    def _scores_itself(self, model: Any, compute_aux_loss: bool, extra: dict[str, Any]) -> bool:
        """Whether our scorer serves this call; on a GPU, with sharded weights or images TRL's own forward does."""
        peft_configs = getattr(self.accelerator.unwrap_model(model), "peft_config", None) or {}
        return not (
            compute_aux_loss
            or any(value is not None for value in extra.values())
            or self.accelerator.device.type != "cpu"
            or self.is_fsdp_enabled
            or self.is_deepspeed_enabled
            or any(peft_config.is_prompt_learning for peft_config in peft_configs.values())
        )

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
        parts = []
        for start in range(0, len(input_ids), size):
            rows = slice(start, start + size)
            with self.accelerator.autocast():
                part = score(model, head, input_ids[rows], attention_mask[rows], logits_to_keep, compute_entropy)
            parts.append(part)
        logps = torch.cat([part[0] for part in parts])
        entropies = [part[1] for part in parts if part[1] is not None]
        return logps, torch.cat(entropies) if entropies else None, None
