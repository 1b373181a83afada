"""The reference policy of a model with an adapter: a frozen copy of the adapter, which TRL knows by its name."""

import re

import torch
from peft import PeftModel
from torch import Tensor

REFERENCE = "ref"


def _names(adapter: str) -> re.Pattern[str]:
    # Of an embedding the name ends with the adapter's, for its factors are parameters of a dictionary
    return re.compile(rf"\.{re.escape(adapter)}(?=\.|$)")


def reference_weights(model: PeftModel) -> dict[str, Tensor]:
    """Weights of the adapter "ref" by name; none where there is no such adapter.

    Args:
        model: policy with an adapter, not wrapped.

    Returns:
        From name to parameter.
    """
    return {name: weight for name, weight in model.named_parameters() if _names(REFERENCE).search(name)}


@torch.no_grad()
def renew_reference(model: PeftModel, adapter: str = "default") -> None:
    """Make the reference policy what the policy is now: copy the trained adapter into the one called "ref".

    The adapter "ref" is put on the model when there is none. TRL's trainer takes it for the reference
    log-probabilities in place of the model without adapters.

    Args:
        model: policy with an adapter, not wrapped.
        adapter: name of the trained adapter.
    """
    if REFERENCE not in model.peft_config:
        model.add_adapter(REFERENCE, model.peft_config[adapter])
    own = _names(adapter)
    weights = dict(model.named_parameters())
    for name, weight in weights.items():
        if own.search(name):
            copy = weights[own.sub(f".{REFERENCE}", name)]
            copy.copy_(weight)
            copy.requires_grad_(False)
