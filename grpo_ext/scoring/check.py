"""The run-time check of the tree: a few rows, scored over it and by the model's own logits, before the first use."""

from typing import Any

import torch
from torch import Tensor

from grpo_ext.scoring.head import Head
from grpo_ext.scoring.scorer import score_tree

ROWS = 4


def rounding(eps: float, nats: float, height: float) -> float:
    """How far the two orders of summation may lie apart: 4 eps of a log-probability, or half an eps of a logit.

    A trained policy is sure of its tokens, so their log-probabilities are near 0 while the logits, which are rounded
    too, are not: SmolLM2 in bfloat16 has logits of 30 and is 0.04 nats apart. A wrong mask or position shifts whole
    nats.

    Args:
        eps: unit of rounding.
        nats: mean size of the log-probabilities.
        height: mean size of the logits of the same tokens.

    Returns:
        Nats a token, 1e-4 at least.
    """
    return max(4 * eps * max(nats, height / 8, 1.0), 1e-4)


@torch.no_grad()
def check_tree(
    model: Any,
    head: Head,
    input_ids: Tensor,
    attention_mask: Tensor,
    num_completion: int,
    backend: str | None = None,
) -> int:
    """Score the first rows that have a completion over a tree, and compare with the model's plain forward pass.

    The mean difference of the log-probabilities may be what `rounding` says of the coarsest dtype in use.

    Args:
        model: model prepared for the tree.
        head: its head.
        input_ids: (B, P + T).
        attention_mask: (B, P + T).
        num_completion: T.
        backend: attention over the tree, as for `score_tree`.

    Returns:
        Number of log-probabilities that were compared.

    Raises:
        NotImplementedError: the model's layers do not serve a tree.
        ValueError: the two differ by more than rounding.
    """
    rows = attention_mask[:, -num_completion:].any(1).nonzero().squeeze(1)[:ROWS]
    ids, mask = input_ids[rows], attention_mask[rows]
    here = mask[:, -num_completion:].bool()
    if not here.any():
        return 0
    logits = model(input_ids=ids, attention_mask=mask, logits_to_keep=num_completion + 1).logits[:, :-1].float()
    targets = ids[:, -num_completion:, None]
    chosen = (logits / head.temperature).log_softmax(-1).gather(-1, targets).squeeze(-1)
    found, _ = score_tree(model, head, ids, mask, num_completion, backend=backend)
    mean = (found - chosen)[here].abs().mean().item()
    device = input_ids.device.type
    dtypes = {weight.dtype for weight in model.parameters() if weight.is_floating_point()}
    if torch.is_autocast_enabled(device):
        dtypes.add(torch.get_autocast_dtype(device))
    height = (logits.gather(-1, targets).squeeze(-1) / head.temperature)[here].abs().mean().item()
    allowed = rounding(max(torch.finfo(dtype).eps for dtype in dtypes), chosen[here].abs().mean().item(), height)
    # Written so that NaN fails
    if not mean <= allowed:
        raise ValueError(
            f"Log-probabilities scored over a tree differ from the plain forward by {mean:.2g} on average, more than "
            f"the {allowed:.2g} that rounding explains; use scoring='padded' and report the model, please."
        )
    return int(here.sum())
