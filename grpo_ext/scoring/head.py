"""Log-probability and entropy of tokens from hidden states, in chunks that are recomputed in the backward pass."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig

CHUNK_TOKENS = 1024


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


def token_log_probs(
    head: Head, hidden: Tensor, targets: Tensor, entropy: bool = False, chunk: int = CHUNK_TOKENS
) -> tuple[Tensor, Tensor | None]:
    """log π(target) = z_target − log Σ exp z and H = −Σ p log p, at each position.

    Args:
        head: the projection to logits.
        hidden: (N, H) hidden states.
        targets: (N,) token ids.
        entropy: whether to compute H.
        chunk: positions whose (chunk, V) logits exist at a time.

    Returns:
        (N,) log-probabilities and (N,) entropies or None, float32, with gradients.
    """
    parts = []
    for start in range(0, max(len(targets), 1), chunk):
        rows, ids = hidden[start : start + chunk], targets[start : start + chunk]
        if torch.is_grad_enabled() and hidden.requires_grad:
            parts.append(checkpoint(_chunk, head, rows, ids, entropy, use_reentrant=False))
        else:
            parts.append(_chunk(head, rows, ids, entropy))
    chosen = torch.cat([part[0] for part in parts])
    return chosen, torch.cat([part[1] for part in parts]) if entropy else None
