"""An objective: one entry of each axis, composed into a function from a batch to a loss and its metrics."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from grpo_ext.ops.aggregation import AGGREGATIONS, Window
from grpo_ext.ops.kl import KL_ESTIMATORS
from grpo_ext.ops.masking import masked_mean
from grpo_ext.ops.ratios import RATIO_LEVELS
from grpo_ext.ops.surrogates import SURROGATES, Clipping, Terms


@dataclass(frozen=True)
class Batch:
    """Plain tensors of one micro-batch.

    Attributes:
        logps: (B, T) log-probabilities under the policy, with gradient.
        advantages: (B,), (B, 1) or (B, T).
        mask: (B, T), 1 for tokens of the policy.
        old_logps: (B, T) under the policy that was updated from, or None when that is the policy itself.
        ref_logps: (B, T) under the reference model, or None.
        entropies: (B, T), or None.
        sampling_ratio: (B, T) or (B, 1), correction for a sampler that differs from the policy, or None.
        keep: (B, T) or (B, 1), 0 where the surrogate is switched off (high-entropy and off-policy masks), or None.
        entropy_mask: (B, T) tokens on which the entropy bonus acts, or None for all.
        row_weights: (B,) weight of each row in the expectation, 1 on average, or None where all weigh 1.
    """

    logps: Tensor
    advantages: Tensor
    mask: Tensor
    old_logps: Tensor | None = None
    ref_logps: Tensor | None = None
    entropies: Tensor | None = None
    sampling_ratio: Tensor | None = None
    keep: Tensor | None = None
    entropy_mask: Tensor | None = None
    row_weights: Tensor | None = None


@dataclass(frozen=True)
class Objective:
    """A point of the space of objectives; every field but the numbers is a key of its axis.

    Attributes:
        surrogate: key of `SURROGATES`.
        aggregation: key of `AGGREGATIONS`.
        ratio_level: key of `RATIO_LEVELS`.
        ratio_against: "old" or "reference", the denominator of the ratio.
        kl_estimator: key of `KL_ESTIMATORS`.
        kl_against: "reference" or "old".
        kl_in_loss: whether β times the KL is part of the loss.
        entropy_coef: coefficient of the entropy bonus.
        clipping: constants of the surrogate.
    """

    surrogate: str = "clip"
    aggregation: str = "token_mean"
    ratio_level: str = "token"
    ratio_against: str = "old"
    kl_estimator: str = "k3"
    kl_against: str = "reference"
    kl_in_loss: bool = True
    entropy_coef: float = 0.0
    clipping: Clipping = field(default_factory=Clipping)

    def __call__(self, batch: Batch, window: Window, beta: float = 0.0) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a micro-batch and per-token values worth logging.

        L = aggregate(row weight · (surrogate(w, A) · correction + β KL)) − c H

        Args:
            batch: tensors of the micro-batch.
            window: totals of the accumulation window that the micro-batch is part of.
            beta: KL coefficient.

        Returns:
            A scalar loss, this part's share of the window's; and detached (B, T) or (B, 1) values under TRL's names.

        Raises:
            ValueError: when log-probabilities that the objective needs are missing from the batch.
        """
        batch = _neutral_where_masked(batch)
        old_logps = batch.logps.detach() if batch.old_logps is None else batch.old_logps
        by_name = {"old": old_logps, "reference": batch.ref_logps}
        level = RATIO_LEVELS[self.ratio_level]
        advantages = batch.advantages.unsqueeze(1) if batch.advantages.dim() == 1 else batch.advantages
        base_logps = _needed(by_name, self.ratio_against, "ratio_against")
        terms = Terms(
            log_ratio=level(batch.logps, base_logps, batch.mask),
            token_log_ratio=batch.logps - base_logps,
            logps=batch.logps,
            advantages=advantages,
            mask=batch.mask,
            sampling_ratio=batch.sampling_ratio,
        )
        surrogate = SURROGATES[self.surrogate]
        losses = surrogate.loss(terms, self.clipping)
        if batch.keep is not None:
            losses = losses * batch.keep
        if batch.sampling_ratio is not None and not surrogate.corrects_sampler:
            losses = losses * batch.sampling_ratio

        values = {"ratio": torch.exp(terms.log_ratio.detach()), **surrogate.metrics(terms, self.clipping)}
        if beta != 0.0:
            # The correction undoes the sampling by the old policy, whatever the ratio of the surrogate is taken to.
            weight = torch.exp(level(batch.logps, old_logps, batch.mask))
            log_ratio = batch.logps - _needed(by_name, self.kl_against, "kl_against")
            kl = KL_ESTIMATORS[self.kl_estimator](log_ratio, weight)
            values["kl"] = kl.detach()
            if self.kl_in_loss:
                losses = losses + beta * kl
        if batch.row_weights is not None:
            losses = losses * batch.row_weights[:, None]
        loss = AGGREGATIONS[self.aggregation](losses, batch.mask, window)
        if batch.entropies is not None:
            values["entropy"] = batch.entropies.detach()
            if self.entropy_coef != 0.0:
                acts_on = batch.mask if batch.entropy_mask is None else batch.mask * batch.entropy_mask
                loss = loss - self.entropy_coef * masked_mean(batch.entropies, acts_on) / window.parts
        return loss, values


def _neutral_where_masked(batch: Batch) -> Batch:
    """The batch with zeros at masked positions.

    A mask after the fact does not do: the ratio of a tool's token may overflow, and the gradient of a masked infinity
    is 0 · ∞.
    """
    kept = batch.mask.bool()
    tensors = {name: getattr(batch, name) for name in ("logps", "old_logps", "ref_logps", "entropies")}
    return replace(
        batch,
        **{name: torch.where(kept, x, torch.zeros_like(x)) for name, x in tensors.items() if x is not None},
    )


def _needed(by_name: dict[str, Tensor | None], name: str, axis: str) -> Tensor:
    logps = by_name[name]
    if logps is None:
        raise ValueError(f"`{axis}` is {name!r}, but the batch has no reference log-probabilities; set beta > 0.")
    return logps


# TRL's `loss_type` holds two axes in one name; this is what each name says on ours.
TRL_LOSS_TYPES: dict[str, dict[str, str]] = {
    "grpo": {"surrogate": "clip", "aggregation": "seq_mean_token_mean"},
    "bnpo": {"surrogate": "clip", "aggregation": "part_token_mean"},
    "dr_grpo": {"surrogate": "clip", "aggregation": "seq_mean_token_sum_norm"},
    "dapo": {"surrogate": "clip", "aggregation": "token_mean"},
    "luspo": {"surrogate": "clip", "aggregation": "seq_mean_token_sum"},
    "cispo": {"surrogate": "cispo", "aggregation": "token_mean"},
    "sapo": {"surrogate": "soft", "aggregation": "seq_mean_token_mean"},
    "vespo": {"surrogate": "gamma", "aggregation": "token_mean"},
}
