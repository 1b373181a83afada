"""Detectors of a run that no longer learns: dead groups, a reward that stays, entropy that is spent."""

import math
from dataclasses import dataclass
from statistics import fmean, median, variance

from grpo_ext.health.finding import Evidence
from grpo_ext.health.history import History, number


@dataclass(frozen=True)
class DeadGroups:
    """Groups whose rewards are all equal: every advantage is 0 and they teach nothing (DAPO 2503.14476 sec. 3.2).

    Read from the advantages that are trained with; where only TRL's own metric is logged, from the outcome rewards.

    Attributes:
        share: of the groups, mean over the window. Ours: healthy runs of the quickstart stay below 0.75.
        window: logged rows.
    """

    share: float = 0.9
    window: int = 8

    def __call__(self, history: History) -> Evidence | None:
        """The share of dead groups, when it is at least `share`."""
        values = history.last("dead_groups", self.window) or history.last("frac_reward_zero_std", self.window)
        if not values or fmean(values) < self.share:
            return None
        rewards = history.last("reward", self.window)
        level = f" (mean reward {fmean(rewards):.3g})" if rewards else ""
        # One who resamples needs not be told to
        way_out = "" if history.last("resampling/rounds", 1) else ", or set `resampling`"
        return Evidence(
            fmean(values),
            f"{fmean(values):.0%} of the groups in the last {self.window} logged steps have no advantage but 0{level} "
            "and teach nothing; take prompts that the policy solves sometimes, raise `temperature` or "
            f"`num_generations`{way_out}.",
            critical=min(values) >= 1.0,
        )


@dataclass(frozen=True)
class RewardPlateau:
    """A reward whose trend cannot be told from noise.

    Attributes:
        t: slope of the reward over its standard error; below it there is no rise. Ours: 1 is what noise alone gives.
        fall: a slope below minus this many standard errors is a fall, which is critical.
        window: logged rows.
    """

    t: float = 1.0
    fall: float = 4.0
    window: int = 100

    def __call__(self, history: History) -> Evidence | None:
        """The change of the reward over the window, when it is no rise."""
        trend = history.trend("reward", self.window, least=self.window)
        if trend is None or trend.t >= self.t:
            return None
        gain = trend.end - trend.start
        return Evidence(
            gain,
            f"the reward {'fell' if trend.t < -self.fall else 'did not rise'} over the last {self.window} logged "
            f"steps ({gain:+.3g}, at {trend.end:.3g}); stop here, take harder or easier prompts, or change "
            "`learning_rate`.",
            critical=trend.t < -self.fall,
        )


@dataclass(frozen=True)
class EntropyCollapse:
    """A policy that is almost sure of every token, so that a group holds one completion many times.

    Reward is bought with entropy, R = -a exp(H) + b (Cui et al. 2505.22617 eq. 1), so a fall alone is no fault:
    it is one when the reward has not risen for it, or when nothing is left to spend (DAPO 2503.14476 sec. 3.1).

    Attributes:
        floor: nats a token at which nothing is left. Ours: healthy runs of the quickstart stay above 0.03.
        share: of the entropy at the beginning, below which the reward must have risen. Cui et al. see 0.27 left after
            the first twelfth of a run that learns.
        window: logged rows.
    """

    floor: float = 0.01
    share: float = 0.1
    window: int = 8

    def __call__(self, history: History) -> Evidence | None:
        """The entropy, when it is exhausted or spent for nothing."""
        values, early = history.last("entropy", self.window), history.first("entropy", self.window)
        if not values or not early or len(history.rows) < 2 * self.window:
            return None
        now, before = median(values), max(early)
        exhausted = now < self.floor
        if not exhausted and (now >= self.share * before or self._paid(history, before)):
            return None
        return Evidence(
            now,
            f"entropy fell to {now:.2g} nats a token, from {before:.2g}, "
            f"{'which leaves nothing to explore' if exhausted else 'and the reward has not risen for it'}; raise "
            "`epsilon_high` (DAPO: 0.28), `temperature` or `entropy_coef`, or lower `learning_rate`.",
            critical=exhausted,
        )

    def _paid(self, history: History, before: float) -> bool:
        """Whether the reward is higher, by two standard errors, than when half of the entropy was still there."""
        unspent = History([row for row in history.rows if (number(row.get("entropy")) or 0.0) >= before / 2.0])
        now, then = history.last("reward", self.window), unspent.first("reward", len(unspent.rows))
        if len(now) < 2 or not then:
            return True
        # Of the recent rows alone, because there may be a single one before
        error = math.sqrt(variance(now) * (1.0 / len(now) + 1.0 / len(then)))
        return fmean(now) - fmean(then) > 2.0 * error
