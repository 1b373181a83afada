"""All scorers against the plain forward pass of a padded batch: log-probabilities, entropies and all gradients."""

import copy
import os
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

from grpo_ext.models import load_policy, tiny_policy
from grpo_ext.scoring.attention import use_tree_attention
from grpo_ext.scoring.check import check_tree, rounding
from grpo_ext.scoring.scorer import (
    SCORERS,
    UNSLOTH_SWITCH,
    give_hidden_states,
    make_head,
    score_left_aligned,
    score_padded,
    score_tree,
)

Lengths = list[tuple[int, int]]
TEMPERATURE = 0.8


def bare(model: Any) -> PreTrainedModel:
    return model.get_base_model() if getattr(model, "peft_config", None) else model


def prepared(lora: bool = False, **fields: Any) -> tuple[Any, Any]:
    """A plain model and its copy that can return hidden states."""
    model, _ = tiny_policy(seed=0, lora_r=4 if lora else None, **fields)
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    ours = copy.deepcopy(model)
    give_hidden_states(bare(ours))
    use_tree_attention(bare(ours))
    switch_as_unsloth_does(bare(ours))
    return model, ours


def switch_as_unsloth_does(model: PreTrainedModel) -> None:
    """Hidden states in the place of logits when the environment says so, and no padding mask in training."""
    original = model.forward

    def forward(self: PreTrainedModel, **inputs: Any) -> Any:
        if os.environ.get(UNSLOTH_SWITCH) != "1":
            return original(**inputs)
        ids = inputs["input_ids"]
        return types.SimpleNamespace(logits=self.base_model(input_ids=ids, use_cache=False).last_hidden_state)

    model.forward = types.MethodType(forward, model)


def padded(lengths: Lengths, left: int, right: int) -> tuple[Tensor, Tensor, int]:
    """Random ids, mask and number of completion columns of rows with (prompt, completion) lengths."""
    num_prompt = max(p for p, _ in lengths) + left
    num_completion = max(max(c for _, c in lengths) + right, 1)
    mask = torch.zeros(len(lengths), num_prompt + num_completion, dtype=torch.long)
    for row, (p, c) in enumerate(lengths):
        mask[row, num_prompt - p : num_prompt + c] = 1
    # Two tokens only, so that rows of equal prompt length often share a beginning
    ids = torch.randint(4, 6, mask.shape, generator=torch.Generator().manual_seed(sum(map(sum, lengths))))
    return ids * mask, mask, num_completion


def plain(model: Any, ids: Tensor, mask: Tensor, num_completion: int) -> tuple[Tensor, Tensor]:
    logits = model(input_ids=ids, attention_mask=mask).logits[:, -num_completion - 1 : -1].float() / TEMPERATURE
    distribution = torch.distributions.Categorical(logits=logits)
    real = mask[:, -num_completion:]
    return distribution.log_prob(ids[:, -num_completion:]) * real, distribution.entropy() * real


def gradients(model: Any, values: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    values.backward()
    return {n: torch.zeros_like(w) if w.grad is None else w.grad for n, w in model.named_parameters()}


PLAIN, OURS = prepared()
PLAIN_LORA, OURS_LORA = prepared(lora=True)


def compare(scorer: str, model: Any, ours: Any, lengths: Lengths, left: int, right: int) -> None:
    ids, mask, num_completion = padded(lengths, left, right)
    head = make_head(bare(ours), TEMPERATURE)
    logps, entropies = SCORERS[scorer](ours, head, ids, mask, num_completion, entropy=True)
    wanted_logps, wanted_entropies = plain(model, ids, mask, num_completion)
    assert entropies is not None
    assert logps.shape == entropies.shape == (len(lengths), num_completion)
    torch.testing.assert_close(logps, wanted_logps, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(entropies, wanted_entropies, rtol=1e-5, atol=1e-5)
    factors = torch.randn(2, *logps.shape, generator=torch.Generator().manual_seed(0))
    found = gradients(ours, (logps * factors[0] + entropies * factors[1]).sum())
    wanted = gradients(model, (wanted_logps * factors[0] + wanted_entropies * factors[1]).sum())
    largest = max(gradient.abs().max().item() for gradient in wanted.values())
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-5 * largest, msg=name)


ragged = st.lists(st.tuples(st.integers(1, 6), st.integers(0, 5)), min_size=1, max_size=6)


@pytest.mark.parametrize("scorer", SCORERS)
@given(lengths=ragged, left=st.integers(0, 3), right=st.integers(0, 3), lora=st.booleans())
@settings(max_examples=60)
def test_equals_the_plain_forward(scorer: str, lengths: Lengths, left: int, right: int, lora: bool) -> None:
    compare(scorer, *((PLAIN_LORA, OURS_LORA) if lora else (PLAIN, OURS)), lengths, left, right)


@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize(
    ("lengths", "left", "right"),
    [
        ([(1, 1)], 0, 0),
        ([(3, 1), (1, 1)], 0, 0),
        ([(3, 1), (1, 1)], 2, 4),
        ([(3, 4), (2, 0)], 0, 0),
        ([(3, 4), (2, 0)], 1, 1),
    ],
    ids=["one token", "one-token completions", "with empty columns", "a masked row", "a masked row and columns"],
)
def test_edges_equal_the_plain_forward(scorer: str, lengths: Lengths, left: int, right: int) -> None:
    compare(scorer, PLAIN, OURS, lengths, left, right)


@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("whole", [False, True], ids=["completions masked", "everything masked"])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_a_fully_masked_batch_is_a_connected_zero(whole: bool, lora: bool, scorer: str) -> None:
    ours = OURS_LORA if lora else OURS
    ids, mask, num_completion = padded([(3, 0), (2, 0)], 1, 3)
    mask = mask * 0 if whole else mask
    logps, entropies = SCORERS[scorer](ours, make_head(bare(ours), 1.0), ids, mask, num_completion, entropy=True)
    assert entropies is not None and logps.shape == (2, 3)
    assert not logps.any() and not entropies.any()
    found = gradients(ours, logps.sum() + entropies.sum())
    assert not any(gradient.any() or gradient.isnan().any() for gradient in found.values())
    assert any(weight.grad is not None for weight in ours.parameters())


@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_bfloat16(lora: bool, scorer: str) -> None:
    model, ours = prepared(lora, dtype="bfloat16")
    ids, mask, num_completion = padded([(3, 4), (2, 5)], 1, 1)
    logps, _ = SCORERS[scorer](ours, make_head(bare(ours), TEMPERATURE), ids, mask, num_completion)
    wanted, _ = plain(model, ids, mask, num_completion)
    assert logps.dtype == torch.float32
    torch.testing.assert_close(logps, wanted, rtol=0.02, atol=0.05)
    found = gradients(ours, logps.sum())
    assert any(gradient.any() for gradient in found.values())
    assert all(gradient.isfinite().all() for gradient in found.values())


def test_the_head_sees_real_completion_positions_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    from grpo_ext.scoring import scorer

    original = scorer.token_log_probs

    def counting(head: Any, hidden: Tensor, targets: Tensor, *rest: Any, **options: Any) -> Any:
        seen.append(len(targets))
        return original(head, hidden, targets, *rest, **options)

    monkeypatch.setattr(scorer, "token_log_probs", counting)
    ids, mask, num_completion = padded([(3, 4), (2, 1)], 2, 3)
    score_padded(OURS, make_head(OURS, 1.0), ids, mask, num_completion)
    assert seen == [5]


def test_padding_columns_never_meet_the_model() -> None:
    widths: list[int] = []
    ids, mask, num_completion = padded([(3, 4), (2, 1)], 2, 3)

    def watch(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        widths.append(kwargs["input_ids"].size(1))

    handle = OURS.model.register_forward_pre_hook(watch, with_kwargs=True)
    score_padded(OURS, make_head(OURS, 1.0), ids, mask, num_completion)
    handle.remove()
    assert widths == [3 + 4]


def test_the_forward_is_the_old_one_without_the_argument() -> None:
    ids, mask, _ = padded([(3, 4), (2, 5)], 0, 0)
    with torch.no_grad():
        one, other = (model(input_ids=ids, attention_mask=mask).logits for model in (PLAIN, OURS))
    assert torch.equal(one, other)
    assert OURS.generate(input_ids=ids, attention_mask=mask, max_new_tokens=2, do_sample=False).size(1) > ids.size(1)


def test_the_head_is_the_models_own() -> None:
    head = make_head(OURS, 0.5)
    assert head.weight is OURS.get_output_embeddings().weight
    assert (head.temperature, head.bias, head.scale, head.soft_cap) == (0.5, None, 1.0, None)


# The tree


def test_a_group_meets_the_model_once() -> None:
    widths: list[int] = []
    ids, mask, num_completion = padded([(3, 4), (3, 4), (3, 1)], 2, 3)
    ids[:, :5] = ids[0, :5]
    ids[:, 5:] = torch.tensor([[7, 8, 9, 7], [7, 9, 9, 9], [8, 0, 0, 0]]).new_zeros(3, num_completion)
    ids[:, 5:9] = torch.tensor([[7, 8, 9, 7], [7, 9, 9, 9], [8, 0, 0, 0]])

    def watch(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        widths.append(kwargs["input_ids"].numel())

    handle = OURS.model.register_forward_pre_hook(watch, with_kwargs=True)
    score_tree(OURS, make_head(OURS, 1.0), ids, mask, num_completion)
    handle.remove()
    # The prompt, 7, 8 9, 9 9: last tokens predict nothing, and 8 is the last of its row
    assert widths == [3 + 1 + 2 + 2]


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant: bool) -> None:
    model, ours = prepared(lora=True)
    ours.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    ours.enable_input_require_grads()
    compare("tree", model, ours.train(), [(4, 3), (4, 5), (2, 1)], 1, 1)


def test_four_bit_weights_under_an_adapter(tmp_path: Path) -> None:
    whole, tokenizer = tiny_policy(seed=0)
    whole.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, ours = (load_policy(tmp_path, load_in_4bit=True, dtype="float32", lora_r=4)[0] for _ in range(2))
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.05)
    ours.load_state_dict(
        {name: weight for name, weight in model.state_dict().items() if "lora_" in name}, strict=False
    )
    give_hidden_states(bare(ours))
    use_tree_attention(bare(ours))
    compare("tree", model, ours, [(4, 3), (4, 5), (4, 1), (2, 1)], 1, 1)


def test_the_check_passes_on_a_right_tree() -> None:
    ids, mask, num_completion = padded([(3, 4), (3, 2), (2, 5)], 1, 1)
    assert check_tree(OURS, make_head(OURS, 1.0), ids, mask, num_completion) == 4 + 2 + 5
    mask[:, -num_completion:] = 0
    assert check_tree(OURS, make_head(OURS, 1.0), ids, mask, num_completion) == 0


def test_the_check_takes_the_rounding_of_large_logits_for_what_it_is() -> None:
    coarse, fine = torch.finfo(torch.bfloat16).eps, torch.finfo(torch.float32).eps
    # SmolLM2 after a warm-up: mean differences of 0.025 to 0.039 nats
    assert 0.039 * 2 < rounding(coarse, nats=0.8, height=30.0) < 0.2
    # Random text: 0.05 nats
    assert 0.05 * 2 < rounding(coarse, nats=10.0, height=15.0) < 0.4
    assert rounding(fine, nats=10.0, height=30.0) == 1e-4


def test_the_check_finds_wrong_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    from grpo_ext.scoring import scorer

    right = scorer.token_tree

    def shifted(*args: Any) -> Any:
        tree = right(*args)
        tree.positions.mul_(2)
        return tree

    monkeypatch.setattr(scorer, "token_tree", shifted)
    ids, mask, num_completion = padded([(3, 4), (3, 2), (2, 5)], 1, 1)
    with pytest.raises(ValueError, match="differ from the plain forward"):
        check_tree(OURS, make_head(OURS, 1.0), ids, mask, num_completion)


def test_left_aligned_restores_the_switch_and_refuses_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    ids, mask, num_completion = padded([(3, 2), (2, 4)], 1, 1)
    head = make_head(OURS, 1.0)
    monkeypatch.setenv(UNSLOTH_SWITCH, "0")
    score_left_aligned(OURS, head, ids, mask, num_completion)
    assert os.environ[UNSLOTH_SWITCH] == "0"
    monkeypatch.delenv(UNSLOTH_SWITCH)
    with pytest.raises(RuntimeError, match=r"logits a token where Unsloth's models return \d+ hidden states"):
        score_left_aligned(PLAIN, head, ids, mask, num_completion)
    assert UNSLOTH_SWITCH not in os.environ
