"""Continuations of many prefixes: the model's own, with shared beginnings forwarded once, within their room."""

from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from grpo_ext.models import tiny_policy
from grpo_ext.rollouts.continuations import Continuations

PREFIXES = [[5, 6, 7], [5, 6, 7, 8, 9], [5, 6, 7, 8, 9, 10, 11], [20, 21]]


def config(**fields: Any) -> GenerationConfig:
    return GenerationConfig(pad_token_id=0, eos_token_id=[1, 30, 40], **{"do_sample": False, **fields})


def passes(model: Any) -> list[int]:
    seen: list[int] = []
    model.get_input_embeddings().register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].numel()))
    return seen


def greedy(model: Any, prefix: list[int], room: int) -> list[int]:
    """One token at a time, without a cache."""
    ids = list(prefix)
    while len(ids) < len(prefix) + room and (len(ids) == len(prefix) or ids[-1] not in (1, 30, 40)):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prefix) :]


@pytest.mark.parametrize("at_once", [10**6, 1])
def test_greedy_continuations_are_the_model_s(at_once: int) -> None:
    model, _ = tiny_policy(seed=3)
    room = [9, 4, 7, 0]
    found = Continuations(model, config(), at_once)(PREFIXES, 2, room)
    for prefix, rows, limit in zip(PREFIXES, found, room, strict=True):
        assert rows == [greedy(model, prefix, limit)] * 2
    assert [len(rows[0]) <= limit for rows, limit in zip(found, room, strict=True)] == [True] * 4


def test_a_shared_beginning_is_forwarded_once() -> None:
    model, _ = tiny_policy(seed=3)
    seen = passes(model)
    Continuations(model, config())(PREFIXES, 3, [4] * 4)
    assert seen[0] == 7 + 2
    seen.clear()
    Continuations(model, config(), tokens_at_once=1)(PREFIXES, 3, [4] * 4)
    assert [count for count in seen if count in (3, 5, 7, 2)][:1] == [3] and 9 not in seen


def test_draws_differ_and_follow_the_seed() -> None:
    model, _ = tiny_policy(seed=3)
    draw = Continuations(model, config(do_sample=True, temperature=1.0, top_k=0))
    torch.manual_seed(1)
    first = draw(PREFIXES, 4, [8] * 4)
    torch.manual_seed(1)
    assert draw(PREFIXES, 4, [8] * 4) == first
    assert all(len({tuple(row) for row in rows}) > 1 for rows in first)


def test_the_mode_of_the_model_is_left() -> None:
    model, _ = tiny_policy(seed=3)
    model.train()
    Continuations(model, config())(PREFIXES[:1], 1, [2])
    assert model.training


def test_nothing_to_do() -> None:
    model, _ = tiny_policy(seed=3)
    seen = passes(model)
    draw = Continuations(model, config())
    assert draw([], 3, []) == [] and draw([[5]], 2, [-1]) == [[[], []]]
    assert not seen


def test_a_model_that_cannot_share_is_refused() -> None:
    from transformers import MistralConfig, MistralForCausalLM

    model = MistralForCausalLM(
        MistralConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
                      num_key_value_heads=2, vocab_size=50, sliding_window=4)
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"MistralForCausalLM .*process_rollout_model"):
        Continuations(model, config())
