"""Attention over a tree against softmax under the tree's dense mask: values and gradients."""

from itertools import pairwise
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from grpo_ext.models import tiny_policy
from grpo_ext.scoring import blocks, sdpa, varlen
from grpo_ext.scoring.attention import (
    BACKENDS,
    TREE_ATTENTION,
    unsupported,
    use_tree_attention,
)
from grpo_ext.scoring.sdpa import SdpaTree, batches_by_length
from grpo_ext.scoring.tree import Segment, TokenTree, token_tree

WIDTH = 8

tokens = st.integers(1, 3)
rows = st.lists(
    st.tuples(st.lists(tokens, min_size=1, max_size=6), st.lists(tokens, min_size=1, max_size=9)),
    min_size=1,
    max_size=8,
)


def tree_of(pairs: list[tuple[list[int], list[int]]]) -> TokenTree:
    return token_tree([np.array(p) for p, _ in pairs], [np.array(c) for _, c in pairs], 9)


def heads(tree: TokenTree, kv: int, groups: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(len(tree))
    shapes = [(len(tree), n, WIDTH) for n in (kv * groups, kv, kv)]
    query, key, value = (torch.randn(s, generator=random, dtype=dtype).requires_grad_() for s in shapes)
    return query, key, value


def dense(tree: TokenTree, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    groups = query.size(1) // key.size(1)
    key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
    scores = torch.einsum("qhd,khd->hqk", query, key) * scale
    weights = scores.masked_fill(~tree.mask(), -torch.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, value)


def compare(tree: TokenTree, kv: int, groups: int, backend: str = "sdpa") -> None:
    inputs = heads(tree, kv, groups, torch.float64)
    wanted = dense(tree, *inputs, 0.3)
    found = BACKENDS[backend](tree)(*inputs, 0.3)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    upstream = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1), dtype=wanted.dtype)
    exact = torch.autograd.grad(wanted, inputs, upstream)
    for ours, theirs in zip(torch.autograd.grad(found, inputs, upstream), exact, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@given(pairs=rows, kv=st.integers(1, 2), groups=st.integers(1, 3), least=st.sampled_from([1, 3, 64]))
@settings(max_examples=80)
def test_fused_blocks_equal_the_dense_mask(pairs: Any, kv: int, groups: int, least: int) -> None:
    with mock.patch.object(sdpa, "LEAST_KEYS", least):
        compare(tree_of(pairs), kv, groups)


@given(pairs=rows, kv=st.integers(1, 2), groups=st.integers(1, 3), scores=st.sampled_from([1, 7, 1 << 20]))
@settings(max_examples=80)
def test_plain_blocks_equal_the_dense_mask(pairs: Any, kv: int, groups: int, scores: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "fused", lambda query: False)
        patch.setattr(blocks, "SCORES", scores)
        compare(tree_of(pairs), kv, groups)


@given(pairs=rows)
@settings(max_examples=20)
def test_flex_equals_the_dense_mask(pairs: Any) -> None:
    tree = tree_of(pairs)
    inputs = [x.detach() for x in heads(tree, 2, 2, torch.float32)]
    found = BACKENDS["flex"](tree)(*inputs, 0.3)
    torch.testing.assert_close(found, dense(tree, *inputs, 0.3), rtol=1e-5, atol=1e-5)


def test_bfloat16_stays_within_its_rounding() -> None:
    tree = tree_of([([1, 2, 3], [1, 2, 1, 3]), ([1, 2, 3], [1, 2, 2]), ([2], [3, 3])])
    inputs = heads(tree, 1, 2, torch.bfloat16)
    found = SdpaTree(tree)(*inputs, 0.3)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), dense(tree, *(x.float() for x in inputs), 0.3), rtol=0.02, atol=0.02)


def test_padding_of_a_batch_never_overflows() -> None:
    # Two segments share a batch, and the shorter one is filled up with token 0, whose scores are its own
    tree = tree_of([([1], [1, 2, 1, 2, 1, 2, 1]), ([2], [1, 2, 1, 2, 1, 2])])
    assert [tuple(index.shape) for index in SdpaTree(tree).batches] == [(2, 7)]
    inputs = [(x.detach() * 0 + 40.0).requires_grad_() for x in heads(tree, 1, 1, torch.float32)]
    with torch.no_grad():
        inputs[1][0] = -40.0
    found = SdpaTree(tree)(*inputs, 1.0)
    for gradient in torch.autograd.grad(found.sum(), inputs):
        assert gradient.isfinite().all()


def blocks_of(ends: Tensor, longest: int) -> list[slice]:
    stops = ends.tolist()
    assert ends.dtype == torch.int32 and stops[0] == 0
    assert longest == max(stop - start for start, stop in pairwise(stops))
    return [slice(start, stop) for start, stop in pairwise(stops)]


def kernel(
    query: Tensor, key: Tensor, value: Tensor, query_ends: Tensor, key_ends: Tensor, most_queries: int, most_keys: int,
    dropout: float, causal: bool, debug: bool, *, scale: float,
) -> tuple[Any, ...]:  # fmt: skip
    """torch's variable-length flash kernel by its documentation, block after block; log-sum-exp is (H, L)."""
    outs, sums = [], []
    for mine, theirs in zip(blocks_of(query_ends, most_queries), blocks_of(key_ends, most_keys), strict=True):
        q = query[mine].transpose(0, 1)[None]
        k, v = (x[theirs].transpose(0, 1)[None] for x in (key, value))
        out, lse = blocks.block_attention(q, k, v, causal, scale)
        outs.append(out[0].transpose(0, 1))
        sums.append(lse[0])
    return torch.cat(outs), torch.cat(sums, 1), None, None, None


def kernel_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, query_ends: Tensor,
    key_ends: Tensor, most_queries: int, most_keys: int, dropout: float, causal: bool, state: Tensor, unused: Tensor,
    *, scale: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    assert lse.shape == (query.size(1), len(query)) and all(x.is_contiguous() for x in (grad, query, key, value, lse))
    totals: list[list[Tensor]] = [[], [], []]
    for mine, theirs in zip(blocks_of(query_ends, most_queries), blocks_of(key_ends, most_keys), strict=True):
        g, q, o = (x[mine].transpose(0, 1)[None] for x in (grad, query, out))
        k, v = (x[theirs].transpose(0, 1)[None] for x in (key, value))
        parts = blocks.block_attention_backward(g, q, k, v, o, lse[:, mine][None], causal, scale)
        for total, part in zip(totals, parts, strict=True):
            total.append(part[0].transpose(0, 1))
    return tuple(torch.cat(total) for total in totals)


@given(pairs=rows, kv=st.integers(1, 2), groups=st.integers(1, 3), least=st.sampled_from([1, 3, 64]))
@settings(max_examples=60)
def test_two_packed_calls_equal_the_dense_mask(pairs: Any, kv: int, groups: int, least: int) -> None:
    with (
        mock.patch.object(sdpa, "LEAST_KEYS", least),
        mock.patch.object(torch.ops.aten, "_flash_attention_forward", kernel),
        mock.patch.object(torch.ops.aten, "_flash_attention_backward", kernel_backward),
        mock.patch.object(varlen, "KERNEL_DTYPES", (torch.float64,)),
    ):
        compare(tree_of(pairs), kv, groups, "varlen")


def test_packed_calls_fit_the_kernel_of_this_torch() -> None:
    # Without a GPU the kernel itself cannot run, but torch knows the arguments that it takes and the shapes it gives
    device = torch.device("meta")
    assert not varlen.VarlenTree.serves(torch.device("cpu")) and varlen.VarlenTree.serves(torch.device("cuda"))
    packed = varlen.Packed([torch.arange(3), torch.arange(2)], [torch.arange(4), torch.arange(1)], False, device)
    query, key, value = (torch.empty(5, heads, 64, dtype=torch.bfloat16, device=device) for heads in (4, 2, 2))
    out, lse = varlen.packed_attention(query, key, value, packed, 0.1)
    assert out.shape == query.shape and lse.shape == (5, 4)
    gradients = varlen.packed_attention_backward(out, query, key, value, out, lse, packed, 0.1)
    assert [x.shape for x in gradients] == [query.shape, key.shape, value.shape]


def test_packed_calls_in_float32_are_refused() -> None:
    tree = tree_of([([1, 2], [3, 3, 2])])
    inputs = heads(tree, 1, 1, torch.float32)
    with pytest.raises(NotImplementedError, match="16 bits"):
        BACKENDS["varlen"](tree)(*inputs, 0.3)


@given(pairs=rows, least=st.sampled_from([1, 3, 64]))
def test_crossings_and_segments_hold_each_pair_once(pairs: Any, least: int) -> None:
    tree = tree_of(pairs)
    pairs_seen = torch.zeros(len(tree), len(tree), dtype=torch.long)
    for segment in tree.segments:
        size, inside = segment.stop - segment.start, slice(segment.start, segment.stop)
        pairs_seen[inside, inside] += torch.ones(size, size, dtype=torch.long).tril()
    with mock.patch.object(sdpa, "LEAST_KEYS", least):
        for crossing in sdpa.crossings(tree.segments):
            keys = torch.arange(len(tree))[crossing.keys]
            pairs_seen[crossing.queries, keys] += 1
    assert torch.equal(pairs_seen, tree.mask().long())


def test_segments_of_about_equal_length_share_a_batch() -> None:
    lengths = [100, 90, 76, 20, 3]
    stops = np.cumsum(lengths).tolist()
    segments = tuple(Segment(b - n, b, b) for n, b in zip(lengths, stops, strict=True))
    assert [tuple(index.shape) for index in batches_by_length(segments)] == [(3, 100), (1, 20), (1, 3)]
    together = torch.cat([index[index >= 0] for index in batches_by_length(segments)])
    assert together.sort().values.tolist() == list(range(sum(lengths)))


# Which models


@pytest.mark.parametrize(
    ("config", "word"),
    [
        (LlamaConfig(), None),
        (Qwen3Config(), None),
        (Qwen2Config(use_sliding_window=True, sliding_window=16), "sliding window"),
        (MistralConfig(sliding_window=16), "sliding window"),
        (LlamaConfig(attention_dropout=0.1), "attention_dropout"),
        (LlamaConfig(attn_logit_softcapping=50.0), "attn_logit_softcapping"),
        (LlamaConfig(layer_types=["full_attention", "linear_attention"], num_hidden_layers=2), "linear_attention"),
    ],
)
def test_what_the_tree_does_not_serve_is_named(config: Any, word: str | None) -> None:
    config._attn_implementation = "sdpa"
    reason = unsupported(config)
    assert reason is None if word is None else word in (reason or "")


def test_eager_attention_is_named() -> None:
    config = LlamaConfig()
    config._attn_implementation = "eager"
    assert "'eager'" in (unsupported(config) or "")


def test_a_model_is_the_old_one_without_a_tree(tmp_path: Any) -> None:
    plain, _ = tiny_policy(seed=0)
    ours, tokenizer = tiny_policy(seed=0)
    use_tree_attention(ours)
    batch = tokenizer(["one", "and another"], return_tensors="pt", padding=True)
    with torch.no_grad():
        assert torch.equal(plain(**batch).logits, ours(**batch).logits)
    # The name is ours alone: a saved model opens without this package
    ours.save_pretrained(tmp_path)
    assert TREE_ATTENTION not in (tmp_path / "config.json").read_text()
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config._attn_implementation == "sdpa"
