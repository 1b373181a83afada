"""Log-probabilities of a padded batch: only real completion positions meet the head, padding columns are cut off."""

import functools
import types
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from grpo_ext.scoring.head import Head, logit_scale, token_log_probs


def give_hidden_states(model: PreTrainedModel) -> None:
    """Let `model(..., hidden_states_only=True)` return the backbone's last hidden states instead of logits.

    The call goes through the model's own forward, so wrappers (DDP, FSDP, PEFT) see it. Without the argument the
    forward is the original one.

    Args:
        model: causal language model with `base_model` and output embeddings, before it is wrapped.
    """
    original = model.forward

    # generate() checks its arguments against the signature of forward, which wraps() keeps
    @functools.wraps(type(model).forward)
    def forward(self: PreTrainedModel, *args: Any, hidden_states_only: bool = False, **kwargs: Any) -> Any:
        if not hidden_states_only:
            return original(*args, **kwargs)
        return self.base_model(*args, **kwargs, use_cache=False).last_hidden_state

    model.forward = types.MethodType(forward, model)


def make_head(model: PreTrainedModel, temperature: float, in_float32: bool = False) -> Head:
    """The head of a causal language model as plain tensors and numbers.

    Args:
        model: causal language model, not wrapped.
        temperature: the sampler's temperature.
        in_float32: whether the projection runs in float32.

    Returns:
        The head; it holds the model's own weight, not a copy.
    """
    config = model.config.get_text_config()
    embeddings = model.get_output_embeddings()
    return Head(
        weight=embeddings.weight,
        bias=embeddings.bias,
        temperature=temperature,
        scale=logit_scale(config),
        soft_cap=getattr(config, "final_logit_softcapping", None),
        in_float32=in_float32,
    )


def score(
    model: Any, head: Head, input_ids: Tensor, attention_mask: Tensor, num_completion: int, entropy: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Log-probability and entropy of each completion token of a padded batch.

    Args:
        model: model prepared by `give_hidden_states`, possibly wrapped.
        head: its head.
        input_ids: (B, P + T), prompts padded on the left, completions on the right.
        attention_mask: (B, P + T).
        num_completion: T.
        entropy: whether to compute entropies.

    Returns:
        (B, T) log-probabilities and (B, T) entropies or None, 0 at masked positions, float32, with gradients.
    """
    num_prompt = input_ids.size(1) - num_completion
    mask = attention_mask.bool()
    used = mask.any(0).nonzero()
    first = min(int(used[0]), num_prompt - 1) if len(used) else num_prompt - 1
    last = max(int(used[-1]) + 1, num_prompt + 1) if len(used) else num_prompt + 1
    ids, trimmed = input_ids[:, first:last], attention_mask[:, first:last]
    hidden = model(input_ids=ids, attention_mask=trimmed, hidden_states_only=True)

    here = mask[:, num_prompt:last]
    shifted = hidden[:, num_prompt - first - 1 : -1]
    chosen, bits = token_log_probs(head, shifted[here], ids[:, num_prompt - first :][here], entropy)

    def back(values: Tensor) -> Tensor:
        # masked_scatter keeps a batch without a single real token connected to the model, with gradient 0
        full = torch.zeros(here.shape, dtype=values.dtype, device=values.device).masked_scatter(here, values)
        return torch.nn.functional.pad(full, (0, num_prompt + num_completion - last))

    return back(chosen), None if bits is None else back(bits)
