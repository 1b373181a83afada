"""Attention over a token tree, as back ends behind the name a transformers model knows its attention by."""

from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from grpo_ext.scoring.flex import FlexTree
from grpo_ext.scoring.sdpa import SdpaTree
from grpo_ext.scoring.tree import TokenTree
from grpo_ext.scoring.varlen import VarlenTree

TREE_ATTENTION = "tree_or_sdpa"
# Shape of the mask that goes with a tree: of four dimensions, so that the model takes it as it is and builds none
NO_MASK = (1, 1, 1, 1)


class TreeAttention(Protocol):
    """Attention over one tree: calls take (N, Hq, D), (N, Hkv, D), (N, Hkv, D) and the scale of the scores."""

    layers: int

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor: ...


class Backend(Protocol):
    """What makes the attention over a tree."""

    def __call__(self, tree: TokenTree) -> TreeAttention: ...

    def serves(self, device: torch.device) -> bool:
        """Whether it runs on a device."""


# Value of `scoring_attention`
BACKENDS: dict[str, Backend] = {"sdpa": SdpaTree, "flex": FlexTree, "varlen": VarlenTree}


def _tree_or_sdpa(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    tree: TreeAttention | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What a layer calls: (1, H, N, D) each, out comes (1, N, Hq, D)."""
    if tree is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    if attention_mask is None or tuple(attention_mask.shape) != NO_MASK:
        raise NotImplementedError("changes the attention mask in its layers")
    if query.size(-1) != value.size(-1):
        raise NotImplementedError("has values of another width than its keys")
    unknown = [
        name for name in ("softcap", "s_aux", "sliding_window", "position_bias") if kwargs.get(name) is not None
    ]
    if unknown or (module.training and dropout):
        raise NotImplementedError(f"asks its attention for {', '.join(unknown) or 'dropout'}")
    tree.layers += 1
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    # Rotary embeddings may come out wider than the values
    out = tree(q.to(v.dtype), k.to(v.dtype), v, query.size(-1) ** -0.5 if scaling is None else scaling)
    return out[None], None


AttentionInterface.register(TREE_ATTENTION, _tree_or_sdpa)
AttentionMaskInterface.register(TREE_ATTENTION, sdpa_mask)


def unsupported(config: PretrainedConfig) -> str | None:
    """Why a model cannot be scored over a tree.

    Args:
        config: text configuration of the model.

    Returns:
        The reason, as the end of a sentence that begins with the model, or None.
    """
    attention = config._attn_implementation
    if attention not in ("sdpa", TREE_ATTENTION):
        return f"runs {attention!r} attention, and the tree stands in for 'sdpa'"
    if getattr(config, "sliding_window", None) is not None:
        return f"has a sliding window of {config.sliding_window}"
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    if kinds:
        return f"has layers of the type {', '.join(sorted(kinds))}"
    for name in ("attn_logit_softcapping", "alibi", "attention_chunk_size", "attention_dropout"):
        if getattr(config, name, None):
            return f"has `{name}` {getattr(config, name)}"
    return None


def use_tree_attention(model: PreTrainedModel) -> None:
    """Let a model's layers attend over a tree when its call carries one, and as before when not.

    Args:
        model: causal language model for which `unsupported` found nothing.

    Raises:
        NotImplementedError: the model does not take its attention from transformers' interface.
    """
    model.set_attn_implementation(TREE_ATTENTION)
    if model.config._attn_implementation != TREE_ATTENTION:
        raise NotImplementedError("does not take its attention from transformers' AttentionInterface")
