"""Attention over a tree by one variable-length flash kernel call for all segments and one for all crossings."""

from typing import Any

import torch
from torch import Tensor

from grpo_ext.scoring.sdpa import crossings
from grpo_ext.scoring.tree import TokenTree

KERNEL_DTYPES = (torch.bfloat16, torch.float16)


class Packed:
    """Blocks of queries and keys side by side, for one call of a variable-length kernel.

    Args:
        queries: (L,) token indices of each block.
        keys: (K,) token indices of each block.
        causal: whether the blocks are causal; queries are their keys then.
        device: of the tokens.
    """

    def __init__(self, queries: list[Tensor], keys: list[Tensor], causal: bool, device: torch.device) -> None:
        self.causal = causal
        self.queries, self.keys = (torch.cat(blocks).to(device) for blocks in (queries, keys))
        self.query_ends, self.key_ends = (_ends(blocks).to(device) for blocks in (queries, keys))
        self.most_queries, self.most_keys = (max(map(len, blocks)) for blocks in (queries, keys))


def _ends(blocks: list[Tensor]) -> Tensor:
    lengths = torch.tensor([0, *map(len, blocks)], dtype=torch.int32)
    return lengths.cumsum(0, dtype=torch.int32)


def packed_attention(query: Tensor, key: Tensor, value: Tensor, blocks: Packed, scale: float) -> tuple[Tensor, Tensor]:
    """softmax(scale · Q Kᵀ) V of each block and log Σ exp(scale · Q Kᵀ), by torch's variable-length flash kernel.

    Args:
        query: (ΣL, Hq, D), in half precision on a GPU.
        key: (ΣK, Hkv, D).
        value: (ΣK, Hkv, D).
        blocks: where the blocks end.
        scale: multiplier of the scores.

    Returns:
        (ΣL, Hq, D) and (ΣL, Hq) in float32.
    """
    ends = (blocks.query_ends, blocks.key_ends, blocks.most_queries, blocks.most_keys)
    out, lse, *_ = torch.ops.aten._flash_attention_forward(
        query, key, value, *ends, 0.0, blocks.causal, False, scale=scale
    )
    return out, lse.T


def packed_attention_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, blocks: Packed, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Share of each block in the gradients of an attention whose output and log-sum-exp cover several blocks.

    Args:
        grad: (ΣL, Hq, D) gradient of the whole output.
        query: (ΣL, Hq, D).
        key: (ΣK, Hkv, D).
        value: (ΣK, Hkv, D).
        out: (ΣL, Hq, D) whole output.
        lse: (ΣL, Hq) whole log-sum-exp.
        blocks: where the blocks end.
        scale: multiplier of the scores.

    Returns:
        Gradients of query, key and value.
    """
    ends = (blocks.query_ends, blocks.key_ends, blocks.most_queries, blocks.most_keys)
    # Without dropout the kernel draws nothing
    state = torch.zeros(2, dtype=torch.uint64, device=query.device)
    unused = torch.empty(0, device=query.device)
    return torch.ops.aten._flash_attention_backward(
        grad, query, key, value, out, lse.T.contiguous(), *ends, 0.0, blocks.causal, state, unused, scale=scale
    )


class VarlenTree:
    """Two calls of a variable-length flash kernel: segments among themselves, and who attends across them.

    Raises:
        NotImplementedError: when called in float32.
    """

    def __init__(self, tree: TokenTree) -> None:
        self.layers = 0
        device = tree.ids.device
        here = torch.arange(len(tree))
        inside = [here[segment.start : segment.stop] for segment in tree.segments]
        across = crossings(tree.segments)
        self.packs = [Packed(inside, inside, True, device)]
        if across:
            self.packs.append(Packed([here[c.queries] for c in across], [here[c.keys] for c in across], False, device))

    @staticmethod
    def serves(device: torch.device) -> bool:
        """Whether the kernel runs on a device."""
        return device.type == "cuda"

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        if query.dtype not in KERNEL_DTYPES:
            raise NotImplementedError(f"computes in {query.dtype}, and the variable-length flash kernel in 16 bits")
        return _Varlen.apply(query, key, value, self.packs, scale)


class _Varlen(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, packs: list[Packed], scale: float) -> Tensor:
        parts = [
            packed_attention(query[pack.queries], key[pack.keys], value[pack.keys], pack, scale) for pack in packs
        ]
        wide = torch.promote_types(query.dtype, torch.float32)
        # log Σ over the parts of a query, of which there may be several
        largest = torch.full(query.shape[:2], -torch.inf, dtype=wide, device=query.device)
        for pack, (_, lse) in zip(packs, parts, strict=True):
            largest.scatter_reduce_(0, pack.queries[:, None].expand_as(lse), lse.to(wide), "amax")
        total = torch.zeros_like(largest)
        for pack, (_, lse) in zip(packs, parts, strict=True):
            total.index_add_(0, pack.queries, (lse - largest[pack.queries]).exp().to(wide))
        joined = largest + total.log()
        out = torch.zeros(query.shape, dtype=wide, device=query.device)
        for pack, (part, lse) in zip(packs, parts, strict=True):
            share = (lse - joined[pack.queries]).exp()[:, :, None]
            out.index_add_(0, pack.queries, (part * share).to(wide))
        result = out.to(query.dtype)
        ctx.save_for_backward(query, key, value, result, joined)
        ctx.packs, ctx.scale = packs, scale
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, out, lse = ctx.saved_tensors
        totals = [torch.zeros_like(x, dtype=lse.dtype) for x in (query, key, value)]
        for pack in ctx.packs:
            g, q, o, s = (x[pack.queries].contiguous() for x in (grad, query, out, lse))
            k, v = (x[pack.keys].contiguous() for x in (key, value))
            parts = packed_attention_backward(g, q, k, v, o, s, pack, ctx.scale)
            places = (pack.queries, pack.keys, pack.keys)
            for total, part, place in zip(totals, parts, places, strict=True):
                total.index_add_(0, place, part.to(total.dtype))
        d_query, d_key, d_value = (total.to(query.dtype) for total in totals)
        return d_query, d_key, d_value, None, None
