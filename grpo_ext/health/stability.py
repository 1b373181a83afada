"""Detectors of updates that go wrong: KL drift, clip saturation, gradient spikes, a sampler that is another policy."""

import math
from dataclasses import dataclass
from statistics import fmean, median

from grpo_ext.health.finding import Evidence
from grpo_ext.health.history import History


@dataclass(frozen=True)
class KLDrift:
    """A policy far from its reference, where a reward stops meaning what it did (Gao et al. 2210.10760).

    Attributes:
        limit: nats a token, median over the window. Ours; with a `kl_target`, twice of it is a good value.
        window: logged rows.
    """

    limit: float = 0.5
    window: int = 8

    def __call__(self, history: History) -> Evidence | None:
        """The KL, when it is at least `limit`; TRL logs none with `beta` 0."""
        values = history.last("kl", self.window)
        if not values or median(values) < self.limit:
            return None
        return Evidence(
            median(values),
            f"KL to the reference is {median(values):.3g} nats a token over the last {self.window} logged steps; "
            "lower `learning_rate`, raise `beta`, or set `kl_controller` with a `kl_target`.",
            critical=median(values) >= 10.0 * self.limit,
        )


@dataclass(frozen=True)
class ClipSaturation:
    """Updates of which the clip lets too little through: the policy has left the region its samples speak for.

    Attributes:
        limit: share of clipped tokens (of sequences with a sequence ratio), mean over the window. Twice the 15 % that
            GSPO reports of a healthy run (2507.18071 fig. 2), where GRPO has 0.13 %.
        window: logged rows.
    """

    limit: float = 0.3
    window: int = 8

    def __call__(self, history: History) -> Evidence | None:
        """The clipped share, when it is at least `limit`."""
        values = history.last("clip_ratio/region_mean", self.window) or history.last("cispo_clip_ratio", self.window)
        if not values or fmean(values) < self.limit:
            return None
        return Evidence(
            fmean(values),
            f"{fmean(values):.0%} of the ratios were clipped over the last {self.window} logged steps; lower "
            "`learning_rate`, `num_iterations` or `steps_per_generation`, or widen `epsilon`.",
            critical=fmean(values) >= 0.9,
        )


@dataclass(frozen=True)
class GradientSpikes:
    """A gradient norm far above the usual one, or one that is no number.

    Attributes:
        factor: times the median of the rows before. Ours: ten healthy runs of the quickstart reach 3.2; the spikes of
            pre-training that SPAM (2501.06842) and ZClip (2504.02507) act on begin at 7 and at 2.5 deviations.
        window: logged rows before.
        least: rows with a gradient before the first judgement.
    """

    factor: float = 10.0
    window: int = 32
    least: int = 8

    def __call__(self, history: History) -> Evidence | None:
        """The gradient norm, when it is at least `factor` times the median."""
        raw = history.rows[-1].get("grad_norm") if history.rows else None
        if isinstance(raw, float) and not math.isfinite(raw):
            return Evidence(
                raw,
                f"the gradient norm is {raw}; lower `learning_rate`, train in bfloat16 or float32, and look at the "
                "rewards of this step.",
                critical=True,
            )
        before = History(history.rows[-1 - self.window : -1]).first("grad_norm", self.window)
        usual = [value for value in before if value > 0.0]
        latest = History(history.rows[-1:]).first("grad_norm", 1)
        if not latest or len(usual) < self.least or latest[0] < self.factor * median(usual):
            return None
        return Evidence(
            latest[0],
            f"the gradient norm is {latest[0]:.3g}, {latest[0] / median(usual):.0f} times its median of "
            f"{median(usual):.3g}; lower `learning_rate` or set `max_grad_norm` to about {2 * median(usual):.2g}.",
        )


@dataclass(frozen=True)
class SamplerMismatch:
    """Log-probabilities of vLLM and of the trainer that differ by more than rounding (Liu, Li et al. 2025).

    Attributes:
        limit: mean absolute difference in nats a token. Aligned stacks report 0.001 to 0.012 (TRL issues 6789 and
            4772, vLLM's vime issue 64), one that drifted apart 0.036.
        window: logged rows.
    """

    limit: float = 0.03
    window: int = 8

    def __call__(self, history: History) -> Evidence | None:
        """The difference, when it is at least `limit`; TRL logs none without vLLM."""
        values = history.last("sampling/sampling_logp_difference/mean", self.window)
        if not values or fmean(values) < self.limit:
            return None
        return Evidence(
            fmean(values),
            f"vLLM and the trainer differ by {fmean(values):.3g} nats a token over the last {self.window} logged "
            "steps; see that the weights arrive (`vllm_sync`), use one dtype for both, and leave `top_p`, `top_k` "
            "and `min_p` unset.",
            critical=fmean(values) >= 10.0 * self.limit,
        )
