"""Values of a run as JSON and tensors, because a pickle would run what it was told to."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor


@runtime_checkable
class Stateful(Protocol):
    """Something with a state of its own that a checkpoint can hold: plain values, lists, tuples, dicts, tensors."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must keep."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> Any:
        """Take up what `state_dict` gave."""
        ...


def copied(value: Any) -> Any:
    """A value that later changes of its lists, dicts and tensors leave as it is.

    Args:
        value: what `pack` takes.
    """
    match value:
        case Tensor():
            return value.detach().clone()
        case list():
            return [copied(item) for item in value]
        case tuple():
            return tuple(copied(item) for item in value)
        case Mapping():
            return {key: copied(item) for key, item in value.items()}
        case _:
            return value


def pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """A value as JSON, its tensors taken out.

    Args:
        value: None, bool, int, float, str, tensor, or a list, tuple or dict of such, with any such key.
        tensors: gets the tensors, under names that the JSON refers to.

    Returns:
        What `json.dumps` takes and `unpack` turns back, floats bit by bit.

    Raises:
        TypeError: something of another type.
    """
    match value:
        case None | bool() | str():
            return value
        case np.generic():
            return pack(value.item(), tensors)
        case int() | float():
            return value
        case Tensor():
            name = f"tensor{len(tensors)}"
            tensors[name] = value.detach().to("cpu", copy=True).contiguous()
            return {"tensor": name}
        case list():
            return [pack(item, tensors) for item in value]
        case tuple():
            return {"tuple": [pack(item, tensors) for item in value]}
        case Mapping():
            return {"dict": [[pack(key, tensors), pack(item, tensors)] for key, item in value.items()]}
        case _:
            raise TypeError(f"a {type(value).__name__} cannot be kept in a checkpoint")


def unpack(value: Any, tensors: Mapping[str, Tensor], device: torch.device | str = "cpu") -> Any:
    """What `pack` was given.

    Args:
        value: what it returned.
        tensors: the tensors that it took out.
        device: where tensors go.
    """
    match value:
        case list():
            return [unpack(item, tensors, device) for item in value]
        case {"tensor": name}:
            return tensors[name].to(device)
        case {"tuple": items}:
            return tuple(unpack(item, tensors, device) for item in items)
        case {"dict": pairs}:
            return {unpack(key, tensors, device): unpack(item, tensors, device) for key, item in pairs}
        case _:
            return value
