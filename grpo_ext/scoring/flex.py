"""Attention over a tree by one call of flex attention."""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from grpo_ext.scoring.tree import TokenTree


class FlexTree:
    """One call of flex attention with the two comparisons as its block mask; compiled on a GPU."""

    def __init__(self, tree: TokenTree) -> None:
        self.layers = 0
        ends, device = tree.ends, tree.ids.device

        def sees(batch: Tensor, head: Tensor, query_at: Tensor, key_at: Tensor) -> Tensor:
            return (key_at <= query_at) & (query_at < ends[key_at])

        # Not compiled, the mask of every pair of tokens would be made first
        make = torch.compile(create_block_mask) if device.type == "cuda" else create_block_mask
        self.mask = make(sees, None, None, len(tree), len(tree), device=device)

    @staticmethod
    def serves(device: torch.device) -> bool:
        """Whether training runs on a device: on a CPU flex attention has no backward pass."""
        return device.type != "cpu"

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        q, k, v = (x.transpose(0, 1)[None] for x in (query, key, value))
        run = _compiled_flex() if query.is_cuda else _flex
        return run(q, k, v, self.mask, scale)[0].transpose(0, 1)


def _flex(query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, scale: float) -> Tensor:
    return flex_attention(query, key, value, block_mask=mask, scale=scale, enable_gqa=True)


@cache
def _compiled_flex() -> Callable[..., Tensor]:
    """Compiled once, for trees of every length."""
    compiled: Callable[..., Tensor] = torch.compile(_flex, dynamic=True)
    return compiled
