"""Sampling with transformers where the prompt of a group meets the model once, and its keys and values are copied."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel


@contextmanager
def shared_prefill(model: PreTrainedModel) -> Iterator[None]:
    """Within the context, `model.generate` forwards each different prompt of a batch once.

    What follows is transformers' own sampling, row by row, from the same distribution. A call that repeats no
    prompt, searches with beams, brings a cache or more than text is left as it is.

    Args:
        model: causal language model with full attention in every layer, not wrapped.
    """
    # A class has its own generate, an instance may have another
    before, original = vars(model).get("generate"), model.generate

    def generate(*args: Any, **kwargs: Any) -> Any:
        if not args and _is_plain(kwargs):
            ids, mask = kwargs["input_ids"], kwargs["attention_mask"]
            different, row = torch.unique(torch.cat([ids, mask], 1), dim=0, return_inverse=True)
            if len(different) < len(ids):
                kwargs["past_key_values"] = _prefill(
                    model, different[:, : ids.size(1)], different[:, ids.size(1) :], row
                )
        return original(*args, **kwargs)

    model.generate = generate
    try:
        yield
    finally:
        del model.generate
        if before is not None:
            model.generate = before


def _is_plain(kwargs: dict[str, Any]) -> bool:
    config = kwargs.get("generation_config")
    inputs = {name for name, value in kwargs.items() if isinstance(value, Tensor)}
    return (
        inputs == {"input_ids", "attention_mask"}
        and kwargs["input_ids"].size(1) > 1
        and kwargs.get("past_key_values") is None
        and config is not None
        and (config.num_beams or 1) == 1
        and config.use_cache is not False
        and config.cache_implementation in (None, "dynamic")
    )


@torch.no_grad()
def _prefill(model: PreTrainedModel, ids: Tensor, mask: Tensor, row: Tensor) -> Cache:
    """Keys and values of all prompt tokens but the last, one copy for each row."""
    positions = (mask.cumsum(1) - 1).clamp(min=0)[:, :-1]
    cache = model(
        input_ids=ids[:, :-1], attention_mask=mask[:, :-1], position_ids=positions, use_cache=True, logits_to_keep=1
    ).past_key_values
    cache.batch_select_indices(row)
    return cache
