"""Everything private of TRL that we touch, each with its reason and the condition under which it may go."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from trl.trainer.utils import nanmax, nanmin

# TRL logs these names with exactly this arithmetic (values of other processes, NaN where a row is empty). They may go
# when TRL exports them at top level.
__all__ = ["nanmax", "nanmin", "regroup"]


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
