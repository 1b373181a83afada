"""TRL's padded batch in, (B, T) log-probabilities and entropies out: over a token tree, or over the padded rows.

Either way only real completion positions meet the head.
"""

import functools
import os
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from grpo_ext.scoring.attention import BACKENDS, NO_MASK
from grpo_ext.scoring.head import Head, logit_scale, token_log_probs
from grpo_ext.scoring.tree import rows_of, token_tree


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


def _placed(values: Tensor, here: Tensor) -> Tensor:
    """(N,) values at the N true places of a mask, 0 elsewhere."""
    # masked_scatter keeps a batch without a single real token connected to the model, with gradient 0
    return torch.zeros(here.shape, dtype=values.dtype, device=values.device).masked_scatter(here, values)


def score_padded(
    model: Any,
    head: Head,
    input_ids: Tensor,
    attention_mask: Tensor,
    num_completion: int,
    entropy: bool = False,
    entropy_gradient: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Log-probability and entropy of each completion token, rows as they are but for columns that nothing is in.

    Args:
        model: model prepared by `give_hidden_states`, possibly wrapped.
        head: its head.
        input_ids: (B, P + T), prompts padded on the left, completions on the right.
        attention_mask: (B, P + T).
        num_completion: T.
        entropy: whether to compute entropies.
        entropy_gradient: whether they are differentiated.

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
    chosen, bits = token_log_probs(
        head, shifted[here], ids[:, num_prompt - first :][here], entropy, entropy_gradient=entropy_gradient
    )

    def back(values: Tensor) -> Tensor:
        return torch.nn.functional.pad(_placed(values, here), (0, num_prompt + num_completion - last))

    return back(chosen), None if bits is None else back(bits)


def score_tree(
    model: Any,
    head: Head,
    input_ids: Tensor,
    attention_mask: Tensor,
    num_completion: int,
    entropy: bool = False,
    entropy_gradient: bool = True,
    backend: str | None = None,
) -> tuple[Tensor, Tensor | None]:
    """What `score_padded` gives, from one pack that holds each shared beginning once.

    Args:
        model: model prepared by `give_hidden_states` and `use_tree_attention`, possibly wrapped.
        head: its head.
        input_ids: (B, P + T), prompts padded on the left, completions on the right.
        attention_mask: (B, P + T).
        num_completion: T.
        entropy: whether to compute entropies.
        entropy_gradient: whether they are differentiated.
        backend: row of `grpo_ext.scoring.attention.BACKENDS`; None is flex on CUDA, sdpa elsewhere.

    Returns:
        (B, T) log-probabilities and (B, T) entropies or None, 0 at masked positions, float32, with gradients.

    Raises:
        NotImplementedError: the model's layers cannot attend over a tree.
    """
    tree = token_tree(*rows_of(input_ids, attention_mask, num_completion), num_completion)
    if not len(tree):
        return score_padded(model, head, input_ids, attention_mask, num_completion, entropy, entropy_gradient)
    tree = tree.to(input_ids.device)
    attention = BACKENDS[backend or ("flex" if input_ids.is_cuda else "sdpa")](tree)
    hidden = model(
        input_ids=tree.ids[None],
        position_ids=tree.positions[None],
        attention_mask=torch.ones(NO_MASK, dtype=torch.bool, device=input_ids.device),
        tree=attention,
        hidden_states_only=True,
    )[0]
    if not attention.layers:
        raise NotImplementedError("does not hand the tree on to its attention layers")
    chosen, bits = token_log_probs(
        head, hidden[tree.predictors], tree.targets, entropy, entropy_gradient=entropy_gradient
    )
    empty = tree.slots < 0

    def back(values: Tensor) -> Tensor:
        return values[tree.slots.clamp(min=0)].masked_fill(empty, 0.0)

    return back(chosen), None if bits is None else back(bits)


# Unsloth's forward passes look here for what to return.
UNSLOTH_SWITCH = "UNSLOTH_RETURN_HIDDEN_STATES"


@contextmanager
def _hidden_states_as_logits() -> Iterator[None]:
    """Within the context, a model that Unsloth has loaded returns hidden states where it returns logits elsewhere."""
    before = os.environ.get(UNSLOTH_SWITCH)
    os.environ[UNSLOTH_SWITCH] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[UNSLOTH_SWITCH]
        else:
            os.environ[UNSLOTH_SWITCH] = before


def score_left_aligned(
    model: Any,
    head: Head,
    input_ids: Tensor,
    attention_mask: Tensor,
    num_completion: int,
    entropy: bool = False,
    entropy_gradient: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """What `score_padded` gives, for models of Unsloth: rows begin at their first token.

    Unsloth's training forward may leave the padding mask out, which is exact only when nothing but padding comes
    after a row's tokens.

    Args:
        model: model that Unsloth has loaded, possibly wrapped.
        head: its head.
        input_ids: (B, P + T), prompts padded on the left, completions on the right.
        attention_mask: (B, P + T).
        num_completion: T.
        entropy: whether to compute entropies.
        entropy_gradient: whether they are differentiated.

    Returns:
        (B, T) log-probabilities and (B, T) entropies or None, 0 at masked positions, float32, with gradients.

    Raises:
        RuntimeError: the model returns logits.
    """
    mask = attention_mask.bool()
    width = max(int(mask.sum(1).max()), 1)
    order = (~mask).to(torch.uint8).argsort(dim=1, stable=True)[:, :width]
    with _hidden_states_as_logits():
        hidden = model(
            input_ids=input_ids.gather(1, order), attention_mask=attention_mask.gather(1, order), use_cache=False
        ).logits
    if hidden.size(-1) != head.weight.size(1):
        raise RuntimeError(
            f"{type(model).__name__} returns {hidden.size(-1)} logits a token where Unsloth's models return "
            f"{head.weight.size(1)} hidden states; load it with grpo_ext.load_policy(..., backend='unsloth')."
        )
    here = mask[:, -num_completion:]
    row, _ = here.nonzero(as_tuple=True)
    predictor = mask.cumsum(1)[:, -num_completion:][here] - 2
    chosen, bits = token_log_probs(
        head,
        hidden[row, predictor],
        input_ids[:, -num_completion:][here],
        entropy,
        entropy_gradient=entropy_gradient,
    )
    return _placed(chosen, here), None if bits is None else _placed(bits, here)


SCORERS: dict[str, Callable[..., tuple[Tensor, Tensor | None]]] = {
    "tree": score_tree,
    "padded": score_padded,
    "left_aligned": score_left_aligned,
}
