"""token_log_probs against log_softmax and gather, values and gradients."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import PretrainedConfig

from grpo_ext.scoring.head import Head, logit_scale, token_log_probs

WIDTH, VOCABULARY = 12, 37


def inputs(rows: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, WIDTH, generator=random).requires_grad_()
    weight = torch.randn(VOCABULARY, WIDTH, generator=random).requires_grad_()
    bias = torch.randn(VOCABULARY, generator=random).requires_grad_()
    targets = torch.randint(VOCABULARY, (rows,), generator=random)
    return hidden, weight, bias, targets, *torch.randn(2, rows, generator=random).unbind()


def reference(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float, scale: float, cap: float
) -> tuple[Tensor, Tensor]:
    z = scale * (hidden @ weight.T + (0.0 if bias is None else bias))
    z = z if cap == 0.0 else cap * torch.tanh(z / cap)
    distribution = torch.distributions.Categorical(logits=z / temperature, validate_args=False)
    return distribution.log_prob(targets), distribution.entropy()


def assert_close(found: Tensor, wanted: Tensor) -> None:
    # Relative to the largest entry: single gradients are sums of terms that cancel
    tolerance = 1e-5 * max(wanted.abs().max().item(), 1e-3) if wanted.numel() else 0.0
    torch.testing.assert_close(found, wanted.to(found.dtype), rtol=1e-5, atol=tolerance)


@given(
    rows=st.integers(0, 9),
    chunk=st.sampled_from([1, 2, 3, 4, 8, 9, 1024]),
    temperature=st.sampled_from([1.0, 0.6, 1.7]),
    scale=st.sampled_from([1.0, 0.25]),
    cap=st.sampled_from([0.0, 3.0, 30.0]),
    with_bias=st.booleans(),
    entropy=st.booleans(),
    frozen=st.booleans(),
)
def test_values_and_gradients(
    rows: int, chunk: int, temperature: float, scale: float, cap: float, with_bias: bool, entropy: bool, frozen: bool
) -> None:
    hidden, weight, bias, targets, u, v = inputs(rows)
    if frozen:
        weight, bias = weight.detach(), bias.detach()
    leaves = [leaf for leaf in (hidden, weight, *([bias] if with_bias else [])) if leaf.requires_grad]
    head = Head(weight, bias if with_bias else None, temperature, scale, cap or None)
    chosen, bits = token_log_probs(head, hidden, targets, entropy, chunk)
    assert chosen.shape == (rows,) and chosen.dtype == torch.float32
    assert (bits is not None) == entropy
    total = (chosen * u).sum() + (0.0 if bits is None else (bits * v).sum())
    found = torch.autograd.grad(total, leaves)

    exact = [leaf.detach().double().requires_grad_() for leaf in (hidden, weight, bias)]
    log_probs, entropies = reference(
        exact[0], exact[1], exact[2] if with_bias else None, targets, temperature, scale, cap
    )
    loss = (log_probs * u).sum() + ((entropies * v).sum() if entropy else 0.0)
    wanted = torch.autograd.grad(loss, exact[: len(leaves)])
    assert_close(chosen, log_probs)
    if bits is not None:
        assert_close(bits, entropies)
    for one, other in zip(found, wanted, strict=True):
        assert_close(one, other)


@pytest.mark.parametrize("frozen", [False, True])
def test_entropies_may_be_left_out_of_the_gradient(frozen: bool) -> None:
    hidden, weight, _, targets, u, _ = inputs(5)
    weight.requires_grad_(not frozen)
    chosen, bits = token_log_probs(Head(weight, None), hidden, targets, True, chunk=2, entropy_gradient=False)
    assert bits is not None and not bits.requires_grad
    log_probs, entropies = reference(hidden, weight, None, targets, 1.0, 1.0, 0.0)
    assert_close(bits, entropies)
    (found,), (wanted,) = (torch.autograd.grad((x * u).sum(), hidden) for x in (chosen, log_probs))
    assert_close(found, wanted)


def test_chunks_give_the_same_without_a_graph() -> None:
    hidden, weight, _, targets, _, _ = inputs(9)
    with torch.no_grad():
        whole = token_log_probs(Head(weight, None), hidden, targets, True)
        parts = token_log_probs(Head(weight, None), hidden, targets, True, chunk=2)
    for one, other in zip(whole, parts, strict=True):
        assert one is not None and other is not None and not other.requires_grad
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_one_side_may_be_frozen(frozen: str) -> None:
    hidden, weight, _, targets, u, _ = inputs(5)
    leaf, other = (weight, hidden) if frozen == "hidden" else (hidden, weight)
    other.requires_grad_(False)
    chosen, _ = token_log_probs(Head(weight, None), hidden, targets, chunk=2)
    (found,) = torch.autograd.grad((chosen * u).sum(), leaf)
    log_probs, _ = reference(hidden, weight, None, targets, 1.0, 1.0, 0.0)
    (wanted,) = torch.autograd.grad((log_probs * u).sum(), leaf)
    assert_close(found, wanted)


def test_bfloat16_weights_give_float32_values() -> None:
    hidden, weight, _, targets, _, _ = inputs(9)
    low_hidden, low_weight = hidden.detach().bfloat16(), weight.detach().bfloat16()
    wanted, _ = reference(low_hidden.float(), low_weight.float(), None, targets, 1.0, 1.0, 0.0)
    rounded, _ = token_log_probs(Head(low_weight, None), low_hidden, targets)
    exact, _ = token_log_probs(Head(low_weight, None, in_float32=True), low_hidden, targets)
    assert rounded.dtype == exact.dtype == torch.float32
    assert_close(exact, wanted)
    assert 1e-4 < (rounded - wanted).abs().max() < 0.2


@pytest.mark.parametrize(
    ("fields", "scale"),
    [
        ({}, 1.0),
        ({"logit_scale": 0.0625}, 0.0625),
        ({"lm_head_multiplier": 0.5}, 0.5),
        ({"logits_scaling": 8.0}, 0.125),
    ],
)
def test_logit_scale_by_its_names(fields: dict[str, float], scale: float) -> None:
    assert logit_scale(PretrainedConfig(**fields)) == scale


def test_hyperclovax_multiplies_where_granite_divides() -> None:
    class HyperClova(PretrainedConfig):
        model_type = "hyperclovax"

    assert logit_scale(HyperClova(logits_scaling=8.0)) == 8.0
