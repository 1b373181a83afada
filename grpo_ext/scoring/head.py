"""Log-probability and entropy of tokens from hidden states, in chunks whose logits are never kept."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig

# Logits that exist at a time, 128 MB in float32
CHUNK_LOGITS = 1 << 25


@dataclass(frozen=True)
class Head:
    """How logits follow from a hidden state: scale · (h Wᵀ + b), soft-capped, over the temperature.

    Attributes:
        weight: (V, H).
        bias: (V,) or None.
        temperature: the sampler's temperature.
        scale: multiplier of the logits.
        soft_cap: c of c·tanh(z/c), or None.
        in_float32: whether the projection itself runs in float32.
    """

    weight: Tensor
    bias: Tensor | None
    temperature: float = 1.0
    scale: float = 1.0
    soft_cap: float | None = None
    in_float32: bool = False

    def logits(self, hidden: Tensor) -> Tensor:
        """Float32 logits of hidden states.

        Args:
            hidden: (N, H).

        Returns:
            (N, V).
        """
        dtype = torch.float32 if self.in_float32 else self.weight.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            z = torch.nn.functional.linear(hidden.to(dtype), self.weight.to(dtype), bias).float() * self.scale
        if self.soft_cap is not None:
            z = self.soft_cap * torch.tanh(z / self.soft_cap)
        return z / self.temperature


def logit_scale(config: PretrainedConfig) -> float:
    """The multiplier a model's own forward puts on its logits, by the name its configuration gives it.

    Args:
        config: text configuration of the model.

    Returns:
        The multiplier, 1.0 for most models.
    """
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        value = getattr(config, name, None)
        if value is not None:
            return float(value)
    scaling = getattr(config, "logits_scaling", None)
    if scaling is None:
        return 1.0
    # HyperCLOVA X multiplies by what Granite and MiniCPM divide by
    return float(scaling) if config.model_type == "hyperclovax" else 1.0 / float(scaling)


def _chunk(head: Head, hidden: Tensor, targets: Tensor, entropy: bool) -> tuple[Tensor, Tensor]:
    log_probs = head.logits(hidden).log_softmax(-1)
    chosen = log_probs.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    if not entropy:
        return chosen, chosen.new_zeros(())
    return chosen, -(log_probs.exp() * log_probs).sum(-1)


class _Frozen(torch.autograd.Function):
    """A head whose own weights are not trained: the derivative by a hidden state is one vector per token.

    It is formed beside the value, from the logits that are there, so the backward pass needs neither logits nor a
    second projection: d log π / dh = Jᵀ (e_target − p) and dH / dh = −Jᵀ (p ∘ (log p + H)), with Jᵀ = Wᵀ · scale /
    temperature, times the derivative of the soft cap.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Head, targets: Tensor, entropy: bool, slope: bool, chunk: int
    ) -> tuple[Tensor, Tensor]:
        values, directions = [], []
        for start in range(0, max(len(targets), 1), chunk):
            value, direction = _with_slopes(
                head, hidden[start : start + chunk], targets[start : start + chunk], entropy, slope
            )
            values.append(value)
            directions.append(direction)
        ctx.save_for_backward(*(torch.cat(column) for column in zip(*directions, strict=True)))
        chosen, bits = (torch.cat(column) for column in zip(*values, strict=True))
        return chosen, bits

    @staticmethod
    def backward(ctx: Any, by_chosen: Tensor, by_entropy: Tensor) -> tuple[Tensor | None, ...]:
        directions = ctx.saved_tensors
        total = by_chosen.unsqueeze(-1) * directions[0]
        if len(directions) > 1:
            total += by_entropy.unsqueeze(-1) * directions[1]
        return total.to(directions[0].dtype), None, None, None, None, None


def _with_slopes(
    head: Head, hidden: Tensor, targets: Tensor, entropy: bool, slope: bool
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, ...]]:
    """(chosen, entropy) of (N,) and the (N, H) derivatives of chosen and, with `slope`, of the entropy."""
    z = head.logits(hidden)
    at = targets.unsqueeze(-1)
    bend = None if head.soft_cap is None else 1.0 - (z * (head.temperature / head.soft_cap)) ** 2
    log_p = z.sub_(z.logsumexp(-1, keepdim=True))
    chosen = log_p.gather(-1, at).squeeze(-1)
    p = log_p.exp()
    bits = -torch.linalg.vecdot(p, log_p) if entropy else chosen.new_zeros(len(chosen))

    weight = head.weight.float() if head.in_float32 else head.weight
    factor = head.scale / head.temperature

    def down(by_logits: Tensor) -> Tensor:
        by_logits = by_logits if bend is None else by_logits * bend
        return (by_logits.to(weight.dtype) @ weight).float() * factor

    directions = [-down(p * (log_p + bits.unsqueeze(-1)))] if slope else []
    # The difference comes before any rounding: for a sure token p is 1 in bfloat16, and 1 - p would be lost
    by_logits = p.neg_().scatter_add_(-1, at, torch.ones_like(chosen).unsqueeze(-1))
    directions.insert(0, down(by_logits))
    return (chosen, bits), tuple(direction.to(hidden.dtype) for direction in directions)


def token_log_probs(
    head: Head,
    hidden: Tensor,
    targets: Tensor,
    entropy: bool = False,
    chunk: int | None = None,
    entropy_gradient: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """log π(target) = z_target − log Σ exp z and H = −Σ p log p, at each position.

    Args:
        head: the projection to logits.
        hidden: (N, H) hidden states.
        targets: (N,) token ids.
        entropy: whether to compute H.
        chunk: positions whose (chunk, V) logits exist at a time; None goes by the size of the vocabulary.
        entropy_gradient: whether H is differentiated too.

    Returns:
        (N,) log-probabilities and (N,) entropies or None, float32, with gradients.
    """
    chunk = chunk or max(CHUNK_LOGITS // len(head.weight), 1)
    frozen = not any(w is not None and w.requires_grad for w in (head.weight, head.bias))
    if torch.is_grad_enabled() and hidden.requires_grad and frozen:
        slope = entropy and entropy_gradient
        with torch.autocast(hidden.device.type, enabled=False):
            chosen, bits = _Frozen.apply(hidden, head, targets, entropy, slope, chunk)
        return chosen, (bits if slope else bits.detach()) if entropy else None
    parts = []
    for start in range(0, max(len(targets), 1), chunk):
        rows, ids = hidden[start : start + chunk], targets[start : start + chunk]
        if torch.is_grad_enabled() and (hidden.requires_grad or not frozen):
            parts.append(checkpoint(_chunk, head, rows, ids, entropy, use_reentrant=False))
        else:
            parts.append(_chunk(head, rows, ids, entropy))
    chosen = torch.cat([part[0] for part in parts])
    if not entropy:
        return chosen, None
    bits = torch.cat([part[1] for part in parts])
    return chosen, bits if entropy_gradient else bits.detach()
