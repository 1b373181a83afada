"""shared_prefill: the same samples, from fewer tokens through the model."""

from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from grpo_ext.models import tiny_policy
from grpo_ext.models.policy import add_lora
from grpo_ext.rollouts.prefill import shared_prefill

GROUPS = [[5, 6, 7, 8, 9], [20, 21]]


def batch(group_size: int) -> dict[str, torch.Tensor]:
    rows = [prompt for prompt in GROUPS for _ in range(group_size)]
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


def sample(model: Any, inputs: dict[str, Any], **fields: Any) -> torch.Tensor:
    config = GenerationConfig(
        max_new_tokens=6, do_sample=True, top_k=0, pad_token_id=0, eos_token_id=1, **{"temperature": 0.9, **fields}
    )
    torch.manual_seed(0)
    return model.generate(**inputs, generation_config=config, disable_compile=True)


def watched(model: Any) -> list[int]:
    seen: list[int] = []
    model.get_input_embeddings().register_forward_hook(lambda _, inputs, out: seen.append(inputs[0].numel()))
    return seen


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_samples_are_the_same_and_prompts_are_read_once(lora: bool) -> None:
    model, _ = tiny_policy(seed=0)
    wrapped = add_lora(model, 4) if lora else model
    wanted = sample(wrapped, batch(4))
    tokens = watched(model)
    with shared_prefill(model):
        found = sample(wrapped, batch(4))
    assert torch.equal(found, wanted)
    # Two prompts without their last token, then a token a row
    assert tokens[:2] == [2 * 4, 8]
    assert torch.equal(sample(wrapped, batch(4)), wanted) and tokens[-6:][0] == 8 * 5


def test_sampling_differs_within_a_group() -> None:
    model, _ = tiny_policy(seed=0)
    with shared_prefill(model):
        rows = sample(model, batch(8))
    assert len({tuple(row) for row in rows[:8].tolist()}) > 4


@pytest.mark.parametrize(
    ("group_size", "fields"),
    [(1, {}), (4, {"use_cache": False}), (4, {"cache_implementation": "static"})],
    ids=["nothing repeats", "no cache", "another cache"],
)
def test_what_it_does_not_serve_is_left_alone(group_size: int, fields: dict[str, Any]) -> None:
    model, _ = tiny_policy(seed=0)
    wanted = sample(model, batch(group_size), **fields)
    tokens = watched(model)
    with shared_prefill(model):
        assert torch.equal(sample(model, batch(group_size), **fields), wanted)
    assert tokens[0] == 2 * group_size * 5


def test_generate_is_the_models_own_again_after_an_error() -> None:
    model, _ = tiny_policy(seed=0)
    with pytest.raises(RuntimeError), shared_prefill(model):
        raise RuntimeError
    assert "generate" not in vars(model)


def test_an_instances_own_generate_is_put_back() -> None:
    model, _ = tiny_policy(seed=0)
    own = model.generate
    model.generate = own
    with shared_prefill(model), shared_prefill(model):
        pass
    assert vars(model)["generate"] is own
