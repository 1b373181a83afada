"""Attention of one block and its log-sum-exp, and the backward pass of a block that is part of a longer softmax."""

from functools import cache

import torch
from torch import Tensor

# Scores that exist at a time where no fused kernel serves
SCORES = 1 << 24


def fused(query: Tensor) -> bool:
    """Whether a fused kernel serves that gives its log-sum-exp away.

    Args:
        query: any tensor of the call.
    """
    return query.device.type == "cpu" and _cpu_kernel_takes_groups()


@cache
def _cpu_kernel_takes_groups() -> bool:
    """Whether this torch has the kernel, and its heads share keys in groups, forward and backward."""
    query, key, value = (
        torch.linspace(-1.0, 1.0, heads * 16).sin().view(1, heads, 2, 8) * heads for heads in (4, 2, 2)
    )
    wide = [x.repeat_interleave(2, 1) for x in (key, value)]
    ops = torch.ops.aten
    try:
        kernel = ops._scaled_dot_product_flash_attention_for_cpu
        backward = ops._scaled_dot_product_flash_attention_for_cpu_backward
        out, lse = kernel(query, key, value, 0.0, True, scale=1.0)
        exact, _ = kernel(query, *wide, 0.0, True, scale=1.0)
        _, by_key, _ = backward(out, query, key, value, out, lse, 0.0, True, scale=1.0)
        _, by_wide, _ = backward(out, query, *wide, out, lse, 0.0, True, scale=1.0)
    except (AttributeError, RuntimeError):
        return False
    return torch.allclose(out, exact) and torch.allclose(by_key, by_wide.unflatten(1, (2, 2)).sum(2), atol=1e-5)


def block_attention(query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """softmax(scale · Q Kᵀ) V and log Σ exp(scale · Q Kᵀ).

    Args:
        query: (S, Hq, L, D); groups of Hq / Hkv heads share a key head.
        key: (S, Hkv, K, D).
        value: (S, Hkv, K, D).
        causal: whether query i sees the keys 0..i only; L is K then.
        scale: multiplier of the scores.

    Returns:
        (S, Hq, L, D) in the dtype of the query, and (S, Hq, L) in float32 (float64 for float64).
    """
    if fused(query):
        # The fused kernel that scaled_dot_product_attention itself runs; only this name of it returns the sum
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, causal, scale=scale)
    outs, sums = [], []
    for start, rows in _query_chunks(query, key):
        scores = _scores(rows, key, start, causal, scale)
        lse = scores.logsumexp(-1)
        weights = (scores - lse[..., None]).exp().to(value.dtype)
        outs.append((weights @ value[:, :, None]).flatten(1, 2))
        sums.append(lse.flatten(1, 2))
    return torch.cat(outs, 2), torch.cat(sums, 2)


def block_attention_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Share of one block in the gradients of an attention whose output and log-sum-exp cover several blocks.

    With P = exp(scale · Q Kᵀ − lse): dV = Pᵀ dO, dS = P ∘ (dO Vᵀ − rowsum(dO ∘ O)), dQ = scale · dS K,
    dK = scale · dSᵀ Q (Dao et al. 2022, algorithm 4). A row with lse = inf and grad = 0 has no share.

    Args:
        grad: (S, Hq, L, D) gradient of the whole output.
        query: (S, Hq, L, D).
        key: (S, Hkv, K, D).
        value: (S, Hkv, K, D).
        out: (S, Hq, L, D) whole output.
        lse: (S, Hq, L) whole log-sum-exp.
        causal: whether query i sees the keys 0..i only.
        scale: multiplier of the scores.

    Returns:
        Gradients of query, key and value.
    """
    if fused(query):
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, query, key, value, out, lse, 0.0, causal, scale=scale
        )
    d_query, d_key, d_value = [], torch.zeros_like(key), torch.zeros_like(value)
    delta = (grad.to(lse.dtype) * out.to(lse.dtype)).sum(-1)
    heads = key.size(1)
    for start, rows in _query_chunks(query, key):
        part = slice(start, start + rows.size(3))
        g, whole, d = (x[:, :, part].unflatten(1, (heads, -1)) for x in (grad, lse, delta))
        weights = (_scores(rows, key, start, causal, scale) - whole[..., None]).exp()
        d_scores = weights * ((g @ value[:, :, None].mT).to(weights.dtype) - d[..., None]) * scale
        d_query.append((d_scores.to(key.dtype) @ key[:, :, None]).flatten(1, 2))
        d_key += torch.einsum("shrlk,shrld->shkd", d_scores.to(rows.dtype), rows)
        d_value += torch.einsum("shrlk,shrld->shkd", weights.to(g.dtype), g)
    return torch.cat(d_query, 2), d_key, d_value


def _query_chunks(query: Tensor, key: Tensor) -> list[tuple[int, Tensor]]:
    """Starts and (S, Hkv, Hq / Hkv, l, D) views of the queries, so that the scores of a chunk stay small."""
    grouped = query.unflatten(1, (key.size(1), -1))
    step = max(SCORES // max(key.size(0) * query.size(1) * key.size(2), 1), 1)
    return [(start, grouped[:, :, :, start : start + step]) for start in range(0, query.size(2), step)]


def _scores(rows: Tensor, key: Tensor, start: int, causal: bool, scale: float) -> Tensor:
    wide = torch.promote_types(rows.dtype, torch.float32)
    scores = (rows @ key[:, :, None].mT).to(wide) * scale
    if causal:
        query_at = torch.arange(start, start + rows.size(3), device=rows.device)
        hidden = torch.arange(key.size(2), device=rows.device) > query_at[:, None]
        scores = scores.masked_fill(hidden, -torch.inf)
    return scores
