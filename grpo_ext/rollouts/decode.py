"""Decoding with the keys and values of a prompt held once, for all rows that go on from it.

A row's token attends to its prompt and to the row's own earlier tokens. The two parts are attended to apart and
joined through their log-sum-exp, as in `grpo_ext.scoring.attention`, so nothing of a prompt is copied, no row is
padded, and a row that has ended is dropped.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from grpo_ext.scoring.attention import NO_MASK, TreeAttention
from grpo_ext.scoring.blocks import block_attention
from grpo_ext.scoring.sdpa import SdpaTree
from grpo_ext.scoring.tree import token_tree

# Own tokens for which room is made at a time
ROOM = 64


class _Recorded:
    """Attention over a tree that keeps the keys and values of each layer."""

    def __init__(self, inner: TreeAttention) -> None:
        self.layers = 0
        self.inner = inner
        self.kept: list[tuple[Tensor, Tensor]] = []

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        self.kept.append((key, value))
        return self.inner(query, key, value, scale)


@dataclass(frozen=True)
class Prompts:
    """Different prompts after their forward pass.

    Attributes:
        model: causal language model whose layers attend over a tree, not wrapped.
        lengths: (P,) tokens of each prompt.
        keys_values: for each layer and prompt its keys and values, (1, Hkv, L, D) each.
        logits: (P, V) logits after the last token, float32.
    """

    model: PreTrainedModel
    lengths: Tensor
    keys_values: list[list[tuple[Tensor, Tensor]]]
    logits: Tensor


@torch.no_grad()
def prefill(model: PreTrainedModel, prompts: Sequence[Tensor]) -> Prompts:
    """Forward different prompts in one pack, in which a beginning that several share is held once.

    Args:
        model: model prepared by `use_tree_attention`, not wrapped.
        prompts: P tensors of token ids, none empty.

    Returns:
        What decoding goes on from.

    Raises:
        NotImplementedError: the model's layers cannot attend over a tree.
    """
    device = prompts[0].device
    # A completion of one token asks for the prediction after the prompt and is not itself in the tree
    rows = [prompt.cpu().numpy().astype(np.int64) for prompt in prompts]
    tree = token_tree(rows, [np.zeros(1, dtype=np.int64)] * len(rows), 1).to(device)
    last = tree.predictors[tree.slots[:, 0]]
    recorded = _Recorded(SdpaTree(tree))
    logits = _logits(model, tree.ids, tree.positions, recorded, last)
    here = torch.arange(len(tree), device=device)
    paths = [((here <= end) & (tree.ends > end)).nonzero().squeeze(1) for end in last]
    keys_values = [
        [(key[path].transpose(0, 1)[None], value[path].transpose(0, 1)[None]) for path in paths]
        for key, value in recorded.kept
    ]
    lengths = torch.tensor([len(row) for row in rows], device=device)
    return Prompts(model, lengths, keys_values, logits)


def _logits(model: PreTrainedModel, ids: Tensor, positions: Tensor, attention: Any, keep: Tensor | int) -> Tensor:
    """(N, V) logits in float32 of tokens that attend through `attention`, of all with keep = 0."""
    logits = model(
        input_ids=ids[None],
        position_ids=positions[None],
        attention_mask=torch.ones(NO_MASK, dtype=torch.bool, device=ids.device),
        tree=attention,
        use_cache=False,
        logits_to_keep=keep,
    ).logits[0]
    if not attention.layers:
        raise NotImplementedError("does not hand the tree on to its attention layers")
    return logits.float()


class _Own:
    """Keys or values of one layer for the rows' own tokens, with room for more."""

    def __init__(self) -> None:
        self.stored: Tensor | None = None

    def add(self, new: Tensor, at: int) -> Tensor:
        """Store (R, Hkv, D) as token `at` of each row; gives all, (R, Hkv, at + 1, D)."""
        if self.stored is None or self.stored.size(2) <= at:
            wider = new.new_empty(*new.shape[:2], at + ROOM, new.size(2))
            if self.stored is not None:
                wider[:, :, :at] = self.stored[:, :, :at]
            self.stored = wider
        self.stored[:, :, at] = new
        return self.stored[:, :, : at + 1]

    def select(self, rows: Tensor, length: int) -> None:
        if self.stored is not None:
            kept = self.stored.new_empty(len(rows), *self.stored.shape[1:])
            torch.index_select(self.stored[:, :, :length], 0, rows, out=kept[:, :, :length])
            self.stored = kept


class _Step:
    """Attention of one new token a row."""

    def __init__(self, decoder: "Decoder") -> None:
        self.layers = 0
        self.decoder = decoder

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        decoder, layer = self.decoder, self.layers - 1
        own_keys, own_values = decoder.own[layer]
        keys, values = own_keys.add(key, decoder.length), own_values.add(value, decoder.length)
        own, own_lse = block_attention(query[:, :, None], keys, values, False, scale)
        parts, sums = [], []
        for prompt, rows in decoder.spans:
            prompt_key, prompt_value = decoder.prompts.keys_values[layer][prompt]
            part, lse = block_attention(query[rows].transpose(0, 1)[None], prompt_key, prompt_value, False, scale)
            parts.append(part[0].transpose(0, 1))
            sums.append(lse[0].T)
        # Two-way softmax of the log-sum-exps
        weight = (torch.cat(sums) - own_lse.squeeze(2)).sigmoid()[:, :, None]
        own = own.squeeze(2)
        return (own + (torch.cat(parts) - own) * weight).to(query.dtype)


class Decoder:
    """Rows that go on from prompts, all with the same number of own tokens.

    Args:
        prompts: forwarded prompts.
        rows: (R,) prompt of each row, ascending.
    """

    def __init__(self, prompts: Prompts, rows: Tensor) -> None:
        self.prompts = prompts
        self.length = 0
        self.own = [(_Own(), _Own()) for _ in prompts.keys_values]
        self._set_rows(rows)

    def _set_rows(self, rows: Tensor) -> None:
        self.rows = rows
        prompts, counts = torch.unique_consecutive(rows, return_counts=True)
        stops = counts.cumsum(0).tolist()
        self.spans = [
            (prompt, slice(start, stop))
            for prompt, start, stop in zip(prompts.tolist(), [0, *stops], stops, strict=False)
        ]

    def start(self) -> Tensor:
        """(R, V) logits of the first own token of each row, float32."""
        return self.prompts.logits[self.rows]

    @torch.no_grad()
    def step(self, tokens: Tensor, parents: Tensor | None = None) -> Tensor:
        """Append a token to rows, some of which may have been dropped or doubled.

        Args:
            tokens: (R',) new token of each row.
            parents: (R',) current row that each new row goes on from, those of one prompt side by side and prompts
                ascending; None keeps all.

        Returns:
            (R', V) logits of the next token, float32.
        """
        if parents is not None:
            for kept in self.own:
                for one in kept:
                    one.select(parents, self.length)
            self._set_rows(self.rows[parents])
        positions = self.prompts.lengths[self.rows] + self.length
        logits = _logits(self.prompts.model, tokens, positions, _Step(self), 0)
        self.length += 1
        return logits
