"""Weights that FSDP2 has cut up between processes, put together while each of them generates on its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor


@contextmanager
def gathered(model: Any, device: torch.device) -> Iterator[None]:
    """Within the context every process holds all weights of a model, so processes may run different numbers of passes.

    A pass over sharded weights gathers them layer by layer, once for each token, and all processes must run it
    alike: one whose rows have ended would leave the others waiting for ever.

    Args:
        model: causal language model; one that FSDP2 has not sharded is left alone. No gradients within the context.
        device: where it computes.
    """
    units: list[Any] = [module for module in model.modules() if isinstance(module, FSDPModule)]
    if not units:
        yield
        return
    with torch.no_grad():
        # FSDP2 takes the first module that is called for the outermost one, and peft's generate begins below it
        model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=device))
    sharded = [unit for unit in units if any(isinstance(weight, DTensor) for weight in _own(unit))]
    for unit in sharded:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        yield
    finally:
        for unit in sharded:
            unit.set_reshard_after_forward(True, recurse=False)
            unit.reshard()


def _own(unit: Any) -> list[torch.nn.Parameter]:
    """Weights of a unit that are not those of a unit within it."""
    inner: list[Any] = [module for module in unit.modules() if module is not unit and isinstance(module, FSDPModule)]
    others = {id(weight) for module in inner for weight in module.parameters()}
    return [weight for weight in unit.parameters() if id(weight) not in others]
