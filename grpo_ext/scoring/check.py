"""The run-time check of the tree: a few rows, scored both ways before the first use."""

from typing import Any

import torch
from torch import Tensor

from grpo_ext.scoring.head import Head
from grpo_ext.scoring.scorer import score_padded, score_tree

ROWS = 4


@torch.no_grad()
def check_tree(model: Any, head: Head, input_ids: Tensor, attention_mask: Tensor, num_completion: int) -> None:
    """Score the first rows over a tree and padded, and compare.

    The mean difference of the log-probabilities may be 8 units of rounding of the model's dtype, and 1e-4 at least:
    bfloat16 rounds the two orders of summation differently, while a wrong mask or position shifts whole nats.

    Args:
        model: model prepared for both ways.
        head: its head.
        input_ids: (B, P + T).
        attention_mask: (B, P + T).
        num_completion: T.

    Raises:
        NotImplementedError: the model's layers do not serve a tree.
        ValueError: the two ways differ by more than rounding.
    """
    rows = slice(0, ROWS)
    batch = (input_ids[rows], attention_mask[rows], num_completion)
    mask = attention_mask[rows, -num_completion:].bool()
    difference = (score_tree(model, head, *batch)[0] - score_padded(model, head, *batch)[0])[mask].abs()
    mean = difference.mean().item() if len(difference) else 0.0
    device = input_ids.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else head.weight.dtype
    allowed = max(8 * torch.finfo(dtype).eps, 1e-4)
    # Written so that NaN fails
    if not mean <= allowed:
        raise ValueError(
            f"Log-probabilities scored over a tree differ from the plain forward by {mean:.2g} on average, more than "
            f"the {allowed:.2g} that {dtype} rounding explains; use scoring='padded' and report the model, please."
        )
