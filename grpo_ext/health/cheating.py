"""Detectors of a reward that is earned in the wrong way: by length, cut short, or against another reward."""

from dataclasses import dataclass
from statistics import fmean

from grpo_ext.health.finding import Evidence
from grpo_ext.health.history import History, Trend, correlation_of_changes

LENGTH = "completions/mean_length"


def parts(history: History, window: int) -> dict[str, str]:
    """Logged name of the mean of each reward function.

    Args:
        history: the run.
        window: logged rows to look at.

    Returns:
        From the reward function's name to the metric.
    """
    return {name: f"rewards/{name}/mean" for name in history.names("rewards/", "/mean", window)}


@dataclass(frozen=True)
class LengthHacking:
    """Completions that grow while no reward grows but the ones that are paid by length.

    A part is paid by length when its row-to-row changes follow those of the mean length. Growth without any gain is
    also what the 1/|o| of the GRPO loss does to wrong answers (Dr. GRPO 2503.20783 sec. 3.1).

    Attributes:
        growth: of the mean length over the window. Ours.
        t: standard errors that make a slope a trend. Ours: 4, because every logged step is another test.
        correlation: of the changes of a part and of the length, from which it is paid by length. Ours.
        window: logged rows at most.
        least: logged rows at least.
    """

    growth: float = 1.5
    t: float = 4.0
    correlation: float = 0.9
    window: int = 100
    least: int = 16

    def __call__(self, history: History) -> Evidence | None:
        """The growth of the length, when no other reward explains it."""
        length = history.trend(LENGTH, self.window, self.least)
        rewards = parts(history, self.window) or {"reward": "reward"}
        trends = {name: history.trend(metric, self.window, self.least) for name, metric in rewards.items()}
        if length is None or length.t < self.t or length.end < self.growth * max(length.start, 1.0):
            return None
        paid = [name for name, metric in rewards.items() if self._follows(history, metric)]
        risen = [name for name, trend in trends.items() if trend is not None and trend.t >= self.t / 2.0]
        if set(risen) - set(paid) or all(trend is None for trend in trends.values()):
            return None
        times = length.end / max(length.start, 1.0)
        why = f"the reward `{paid[0]}` follows it" if paid else "no reward rose with it"
        return Evidence(
            times,
            f"completions grew {times:.1f} times, to {length.end:.0f} tokens, and {why}; take length out of the "
            "reward or add `soft_overlong_penalty`, or use `loss_type` dapo or dr_grpo.",
            critical=bool(paid),
        )

    def _follows(self, history: History, metric: str) -> bool:
        return correlation_of_changes(*history.pairs(metric, LENGTH, self.window)) >= self.correlation


@dataclass(frozen=True)
class TruncatedCompletions:
    """Completions cut off at `max_completion_length`, whose rewards are noise (DAPO 2503.14476 sec. 3.4).

    Attributes:
        share: of the completions, mean over the window. Ours: TRL issue 5697 learns at 0.14 and learns nothing at
            0.97, healthy runs of the quickstart begin with up to 0.2.
        window: logged rows.
    """

    share: float = 0.3
    window: int = 8

    def __call__(self, history: History) -> Evidence | None:
        """The share of truncated completions, when it is at least `share`."""
        values = history.last("completions/clipped_ratio", self.window)
        if not values or fmean(values) < self.share:
            return None
        return Evidence(
            fmean(values),
            f"{fmean(values):.0%} of the completions were cut off over the last {self.window} logged steps; raise "
            "`max_completion_length`, ask for shorter answers, or set `mask_truncated_completions`.",
            critical=fmean(values) >= 0.9,
        )


@dataclass(frozen=True)
class PartsApart:
    """Two reward functions of which one rises while the other falls: the policy earns one at the other's cost.

    Attributes:
        change: of each, as a share of its larger end. Ours.
        t: standard errors that make a slope a trend. Ours: 4, because every logged step is another test.
        window: logged rows at most.
        least: logged rows at least.
    """

    change: float = 0.1
    t: float = 4.0
    window: int = 100
    least: int = 16

    def __call__(self, history: History) -> Evidence | None:
        """The fall of the part that fell most, when another one rose."""
        trends = {
            name: trend
            for name, metric in parts(history, self.window).items()
            if (trend := history.trend(metric, self.window, self.least)) is not None and self._moves(trend)
        }
        rising = [name for name, trend in trends.items() if trend.t > 0.0]
        falling = sorted((trend.end - trend.start, name) for name, trend in trends.items() if trend.t < 0.0)
        if not rising or not falling:
            return None
        fall, name = falling[0]
        up, down = trends[rising[0]], trends[name]
        return Evidence(
            fall,
            f"`{name}` fell from {down.start:.3g} to {down.end:.3g} while `{rising[0]}` rose from {up.start:.3g} to "
            f"{up.end:.3g}; raise the weight of `{name}` in `reward_weights`, or read what the new completions do.",
            critical=True,
        )

    def _moves(self, trend: Trend) -> bool:
        size = max(abs(trend.start), abs(trend.end))
        return abs(trend.t) >= self.t and abs(trend.end - trend.start) >= self.change * size > 0.0
