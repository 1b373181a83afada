"""Everything private of TRL that we touch, each with its reason and the condition under which it may go."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from trl import GRPOTrainer
from trl.distributed import DistributedBackend
from trl.generation.vllm_generation import VLLMGeneration
from trl.trainer.utils import nanmax, nanmin

# TRL logs these names with exactly this arithmetic (values of other processes, NaN where a row is empty). They may go
# when TRL exports them at top level.
__all__ = ["nanmax", "nanmin", "regroup", "streamed_weights", "vllm_generation_from"]


def regroup(buffered: list[dict], keys: Tensor, num_parts: int, order: Sequence[int] | None = None) -> list[dict]:
    """Put the rows of each group next to each other again after TRL's shuffle.

    TRL shuffles the rows of a generation batch before it splits them into micro-batches, which scatters each group.
    It may go when TRL keeps groups together.

    Args:
        buffered: TRL's micro-batches; tensors and lists with a row a completion, or values without rows.
        keys: (R,) group of each row over all micro-batches, in their order.
        num_parts: number of micro-batches.
        order: order of the groups; None is the shuffled order of their first rows.

    Returns:
        As many micro-batches of the same sizes with the same rows.
    """
    order_of = {key: place for place, key in enumerate(dict.fromkeys(keys.tolist() if order is None else order))}
    position = torch.tensor([order_of[key] for key in keys.tolist()])
    permutation = torch.argsort(position, stable=True)
    size = len(keys) // num_parts

    merged: dict[str, Any] = {}
    for name, value in buffered[0].items():
        column = [part[name] for part in buffered]
        if isinstance(value, Tensor) and value.dim() > 0:
            merged[name] = torch.cat(column)[permutation.to(value.device)]
        elif isinstance(value, list):
            rows = [row for part in column for row in part]
            merged[name] = [rows[i] for i in permutation.tolist()]
        else:
            merged[name] = value

    def part(value: object, index: int) -> object:
        if isinstance(value, list) or (isinstance(value, Tensor) and value.dim() > 0):
            return value[index * size : (index + 1) * size]
        return value

    return [{name: part(value, index) for name, value in merged.items()} for index in range(num_parts)]


@contextmanager
def vllm_generation_from(make: Callable[..., Any]) -> Iterator[None]:
    """Within the context, a `GRPOTrainer` that is being made gets its vLLM back end from a function.

    TRL's trainer makes a `VLLMGeneration` in its `__init__`, which starts an engine or looks for a server, and takes
    no other one. It may go when the trainer accepts a back end as an argument.

    Args:
        make: called with TRL's class and with the keyword arguments that TRL has for it.
    """
    # The class may have been generated anew by Unsloth, so the name is replaced where its own code looks it up
    names = inspect.unwrap(GRPOTrainer.__init__).__globals__
    stock = names["VLLMGeneration"]
    names["VLLMGeneration"] = lambda *args, **kwargs: make(stock, *args, **kwargs)
    try:
        yield
    finally:
        names["VLLMGeneration"] = stock


def streamed_weights(model: Any, accelerator: Accelerator) -> Iterator[tuple[str, Tensor]]:
    """What TRL's own sync sends to vLLM: name and weight of the merged model, one after another.

    The benchmark of the sync compares with it; TRL offers it only inside a back end that has started an engine. It
    may go when TRL has a function for it.

    Args:
        model: policy, not wrapped. Its adapter is merged while the weights are walked through.
        accelerator: of the run.

    Returns:
        Names as vLLM knows them, and weights.
    """
    sender = object.__new__(VLLMGeneration)
    sender.model, sender.accelerator = model, accelerator
    sender._dist = DistributedBackend(accelerator)
    return sender._iter_named_params()
