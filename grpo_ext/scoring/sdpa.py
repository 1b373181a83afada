"""Attention over a tree in blocks of fused attention, without a mask.

A segment attends to itself causally, and all its descendants attend to it in full. The pieces are joined through their
log-sum-exp, and in the backward pass each piece is given the joined output and the joined log-sum-exp, which makes its
share of the softmax exact (the recomputation of FlashAttention, Dao et al. 2022, algorithm 4, over blocks that are the
segments).
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from grpo_ext.scoring.blocks import block_attention, block_attention_backward
from grpo_ext.scoring.tree import Segment, TokenTree

# Segments share a batch while the shortest fills this much of it
LEAST_FILL = 0.75
# Keys for which a call of the fused backward kernel costs about twice what it costs for one
LEAST_KEYS = 64


def batches_by_length(segments: tuple[Segment, ...]) -> list[Tensor]:
    """Token indices of segments of about equal length, side by side.

    Args:
        segments: segments of a tree.

    Returns:
        Tensors (S, L) of token indices, -1 after the end of a segment.
    """
    ordered = sorted(segments, key=lambda segment: segment.stop - segment.start, reverse=True)
    batches: list[list[Segment]] = []
    for segment in ordered:
        longest = batches[-1][0].stop - batches[-1][0].start if batches else 0
        if not batches or segment.stop - segment.start < LEAST_FILL * longest:
            batches.append([])
        batches[-1].append(segment)
    result = []
    for batch in batches:
        steps = torch.arange(batch[0].stop - batch[0].start)
        index = torch.tensor([segment.start for segment in batch])[:, None] + steps
        result.append(index.where(index < torch.tensor([segment.stop for segment in batch])[:, None], -1))
    return result


@dataclass(frozen=True)
class Crossing:
    """A slice of queries that attend in full to some earlier tokens, which are a slice or a (K,) index."""

    queries: slice
    keys: slice | Tensor


def crossings(segments: tuple[Segment, ...]) -> list[Crossing]:
    """Who attends to whom across segments, each pair of tokens once.

    A segment of some length is seen by all its descendants in one call. Short ones on the way down are gathered until
    they are long enough together, because a call costs about the same for few keys as for `LEAST_KEYS`.

    Args:
        segments: segments of a tree, in depth-first order.

    Returns:
        The calls.
    """
    found: list[Crossing] = []
    # Where each open segment's descendants end, and the ancestors that they have not seen yet
    path: list[tuple[int, list[Segment]]] = []
    for segment in segments:
        while path and path[-1][0] <= segment.start:
            path.pop()
        unseen = path[-1][1] if path else []
        if unseen:
            found.append(Crossing(slice(segment.start, segment.stop), _tokens(unseen)))
        if segment.end > segment.stop:
            unseen = [*unseen, segment]
            if sum(one.stop - one.start for one in unseen) >= LEAST_KEYS:
                found.append(Crossing(slice(segment.stop, segment.end), _tokens(unseen)))
                unseen = []
            path.append((segment.end, unseen))
    return found


def _tokens(segments: list[Segment]) -> slice | Tensor:
    if len(segments) == 1:
        return slice(segments[0].start, segments[0].stop)
    return torch.cat([torch.arange(segment.start, segment.stop) for segment in segments])


class SdpaTree:
    """Blocks of fused attention, one batch for each length of segment and one call for each crossing."""

    def __init__(self, tree: TokenTree) -> None:
        self.layers = 0
        self.batches = [index.to(tree.ids.device) for index in batches_by_length(tree.segments)]
        self.crossed = [
            replace(one, keys=one.keys if isinstance(one.keys, slice) else one.keys.to(tree.ids.device))
            for one in crossings(tree.segments)
        ]

    @staticmethod
    def serves(device: torch.device) -> bool:
        """Whether it runs on a device."""
        return True

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        return _Blocks.apply(query, key, value, self, scale)


def _side_by_side(x: Tensor, index: Tensor) -> Tensor:
    """(N, H, ...) to (S, H, L, ...)."""
    if len(index) == 1:
        start = int(index[0, 0])
        return x[start : start + index.size(1)].transpose(0, 1)[None]
    return x[index.clamp(min=0)].transpose(1, 2)


def _across(query: Tensor, key: Tensor, value: Tensor, crossing: Crossing) -> tuple[Tensor, Tensor, Tensor]:
    """The queries, keys and values of a crossing, (1, H, ..., D)."""
    query, key, value = query[crossing.queries], key[crossing.keys], value[crossing.keys]
    return query.transpose(0, 1)[None], key.transpose(0, 1)[None], value.transpose(0, 1)[None]


class _Blocks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, plan: SdpaTree, scale: float) -> Tensor:
        wide = torch.promote_types(query.dtype, torch.float32)
        out = torch.empty_like(query, dtype=wide, memory_format=torch.contiguous_format)
        lse = out.new_empty(query.shape[:2])
        for index in plan.batches:
            q, k, v = (_side_by_side(x, index) for x in (query, key, value))
            part, part_lse = block_attention(q, k, v, True, scale)
            real = index >= 0
            out[index[real]] = part.transpose(1, 2)[real].to(wide)
            lse[index[real]] = part_lse.transpose(1, 2)[real]
        for crossing in plan.crossed:
            below = crossing.queries
            q, k, v = _across(query, key, value, crossing)
            part, part_lse = block_attention(q, k, v, False, scale)
            other = part_lse[0].T
            joined = torch.logaddexp(lse[below], other)
            out[below] *= (lse[below] - joined).exp()[:, :, None]
            out[below] += part[0].transpose(0, 1) * (other - joined).exp()[:, :, None]
            lse[below] = joined
        out = out.to(query.dtype)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.plan, ctx.scale = plan, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, out, lse = ctx.saved_tensors
        # Sums over many segments, hence not in half precision
        totals = [torch.empty_like(x, dtype=lse.dtype) for x in (query, key, value)]
        for index in ctx.plan.batches:
            real = index >= 0
            g, q, k, v, o, s = (_side_by_side(x, index) for x in (grad, query, key, value, out, lse))
            # exp(-inf): a query that is only padding has no weight anywhere
            g, s = g.masked_fill(~real[:, None, :, None], 0.0), s.masked_fill(~real[:, None], torch.inf)
            for total, part in zip(totals, block_attention_backward(g, q, k, v, o, s, True, ctx.scale), strict=True):
                total[index[real]] = part.transpose(1, 2)[real].to(total.dtype)
        for crossing in ctx.plan.crossed:
            below, own = crossing.queries, crossing.keys
            g, o, s = (x[below].transpose(0, 1)[None] for x in (grad, out, lse))
            q, k, v = _across(query, key, value, crossing)
            parts = block_attention_backward(g, q, k, v, o, s, False, ctx.scale)
            for total, part, place in zip(totals, parts, (below, own, own), strict=True):
                total[place] += part[0].transpose(0, 1)
        d_query, d_key, d_value = (total.to(query.dtype) for total in totals)
        return d_query, d_key, d_value, None, None
