"""What is drawn of a run: a row a panel, with its unit and how to read it."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from grpo_ext.report.reading import Run

POINTS = 500  # of a line at most; more are averaged


@dataclass(frozen=True)
class Panel:
    """One small plot.

    Attributes:
        key: logged name of the line.
        title: what it is.
        unit: on the axis; "%" draws shares as percentages.
        note: how to read it, one or two sentences.
        band: logged names of a lower and an upper bound, drawn where there is one run.
        smooth: whether a running mean is drawn over the noise.
    """

    key: str
    title: str
    unit: str = ""
    note: str = ""
    band: tuple[str, str] | None = None
    smooth: bool = False


LOSS_NOTE = (
    "Near 0 is normal in GRPO. A group's advantages sum to 0 and on fresh samples every ratio is 1, so the value is "
    "about −Σ A = 0 (plus β KL), while its gradient is −Σ A ∇log π. Judge by the reward and the gradient norm."
)

# Heading -> its panels, in the order in which a person asks.
PANELS: dict[str, list[Panel]] = {
    "Reward": [
        Panel("reward", "Reward", "reward", "Mean over the completions of a step.", smooth=True),
        Panel(
            "eval_reward", "Reward in evaluation", "reward", "Mean over the evaluation set, sampled by the trainer."
        ),
        Panel("reward_std", "Spread of rewards", "standard deviation", "Over the completions of a step."),
        Panel("dead_groups", "Dead groups", "%", "Groups without an advantage but 0, which teach nothing."),
        Panel("frac_reward_zero_std", "Equal rewards", "%", "Groups whose completions all earned the same."),
        Panel(
            "effective_samples",
            "Effective samples",
            "completions",
            "How many completions a step learns from, by the weight of their advantages.",
        ),
    ],
    "Policy": [
        Panel("kl", "KL to the reference", "nats per token", "How far the policy has moved from where it started."),
        Panel("entropy", "Entropy", "nats per token", "A fall towards 0 means that samples no longer differ."),
        Panel("clip_ratio/region_mean", "Clipped tokens", "%", "Share of tokens whose gradient the clip removes."),
        Panel(
            "grad_norm", "Gradient norm", "", "Before clipping. This, not the loss, tells that something is learned."
        ),
        Panel("loss", "Loss", "", "Near 0 is normal, and its height says nothing about learning."),
        Panel("learning_rate", "Learning rate"),
        Panel(
            "sampling/sampling_logp_difference/mean",
            "Sampler and trainer",
            "nats per token",
            "Mean difference of the log-probabilities that the sampler and the trainer give the same tokens.",
        ),
    ],
    "Completions": [
        Panel(
            "completions/mean_length",
            "Length",
            "tokens",
            "Mean of a step; the band is the shortest to the longest.",
            ("completions/min_length", "completions/max_length"),
        ),
        Panel("completions/clipped_ratio", "Truncated", "%", "Completions cut off at max_completion_length."),
    ],
    "Speed and memory": [
        Panel("step_time", "Time of a step", "seconds", "Generation, rewards and optimiser step."),
        Panel("tokens_per_second", "Throughput", "tokens per second", "Prompt and completion tokens of a step."),
        Panel("memory/peak_gib", "Peak memory", "GiB", "Of the GPU, or of the process where there is none."),
    ],
}
PART = re.compile(r"rewards/(.+)/mean")
# Counters and what other panels already hold.
UNDRAWN = re.compile(
    r"step|epoch|num_tokens|total_flos|train_.*|rewards/.*|completions/(min|max)_.*|.*_terminated_length|"
    r"clip_ratio/(low|high)_.*|eval_.*"
)


def throughput(metrics: list[dict[str, float]]) -> dict[int, float]:
    """Tokens per second of each step, from TRL's counter of tokens and its time of a step.

    Args:
        metrics: rows of a run.

    Returns:
        Step to tokens per second, where both are logged.
    """
    rows = [row for row in metrics if "num_tokens" in row and row.get("step_time", 0.0) > 0.0]
    found, before = {}, {"step": 0.0, "num_tokens": 0.0}
    for row in rows:
        seconds = row["step_time"] * (row["step"] - before["step"])
        if seconds > 0 and row["num_tokens"] > before["num_tokens"]:
            found[int(row["step"])] = (row["num_tokens"] - before["num_tokens"]) / seconds
        before = row
    return found


def series(run: Run, key: str, points: int = POINTS) -> tuple[list[float], list[float]]:
    """Steps and values of a logged name, the means of equal parts where there are too many.

    Args:
        run: what was logged.
        key: logged name, or `tokens_per_second`.
        points: at most.
    """
    if key == "tokens_per_second":
        pairs = [(float(step), value) for step, value in throughput(run.metrics).items()]
    else:
        pairs = [(row["step"], row[key]) for row in run.metrics if key in row]
    size = -(-len(pairs) // points) or 1
    parts = [pairs[start : start + size] for start in range(0, len(pairs), size)]
    means = [[sum(column) / len(part) for column in zip(*part, strict=True)] for part in parts]
    return [step for step, _ in means], [value for _, value in means]


def ends(run: Run, key: str = "reward") -> tuple[float, float]:
    """Mean of a logged value over the first and over the last tenth of the steps.

    Args:
        run: what was logged.
        key: logged name, with at least one value.
    """
    values = series(run, key, points=10**9)[1]
    size = max(1, len(values) // 10)
    return sum(values[:size]) / size, sum(values[-size:]) / size


def running_mean(values: Sequence[float]) -> list[float]:
    """Mean over a window of about a sixth of the run around each value, cut off at the ends.

    Args:
        values: in order.
    """
    reach = len(values) // 12
    windows = [values[max(0, i - reach) : i + reach + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def panels(runs: Sequence[Run]) -> dict[str, list[Panel]]:
    """The panels for which any of the runs has values, by heading.

    Args:
        runs: what was logged.

    Returns:
        Heading to panels. A reward with several parts gets a panel for each; what no row above knows comes last.
    """
    logged = dict.fromkeys(key for run in runs for row in run.metrics for key in row)
    found = {name: [panel for panel in rows if _has(runs, panel.key)] for name, rows in PANELS.items()}
    parts = [match[1] for key in logged if (match := PART.fullmatch(key))]
    if len(parts) > 1:
        found["Reward"][1:1] = [
            Panel(f"rewards/{name}/mean", name, "reward", "A part of the reward, before its weight.", smooth=True)
            for name in parts
        ]
    drawn = {panel.key for rows in PANELS.values() for panel in rows}
    others = [key for key in logged if key not in drawn and not UNDRAWN.fullmatch(key)]
    found["Also logged"] = [Panel(key, key) for key in sorted(others)]
    return {name: rows for name, rows in found.items() if rows}


def _has(runs: Iterable[Run], key: str) -> bool:
    return any(series(run, key)[0] for run in runs)
