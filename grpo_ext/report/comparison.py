"""Several variants with several seeds, as a table with intervals and as curves over the generated tokens."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from grpo_ext.report.panels import running_mean
from grpo_ext.report.pictures import COLOURS
from grpo_ext.report.reading import read_metrics

# Student's t at 97.5 % for 1, 2, ... degrees of freedom; beyond them the last one is at most 0.18 too wide
T975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)


@dataclass(frozen=True)
class Outcome:
    """One run of a variant.

    Attributes:
        variant: its name.
        seed: its seed.
        before: strict greedy accuracy on the held-out problems before training, a share.
        after: after it.
        problems: held-out problems.
        steps: optimizer steps.
        generated_tokens: tokens of all completions.
        seconds: of the whole run.
        tokens: generated tokens after each step.
        rewards: mean reward of each step.
    """

    variant: str
    seed: int
    before: float
    after: float
    problems: int
    steps: int
    generated_tokens: int
    seconds: float
    tokens: list[int] = field(repr=False)
    rewards: list[float] = field(repr=False)


@dataclass(frozen=True)
class Comparison:
    """All runs of a comparison, the ones of the variant that others are compared with first.

    Attributes:
        command: what made it.
        budget: generated tokens that end a run.
        outcomes: a run each.
    """

    command: str
    budget: int
    outcomes: list[Outcome]

    def as_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Comparison":
        """From plain values."""
        return cls(values["command"], values["budget"], [Outcome(**row) for row in values["outcomes"]])

    def by_variant(self) -> dict[str, list[Outcome]]:
        """Runs by variant, in the order of the seeds."""
        found: dict[str, list[Outcome]] = {}
        for outcome in sorted(self.outcomes, key=lambda outcome: outcome.seed):
            found.setdefault(outcome.variant, []).append(outcome)
        order = list(dict.fromkeys(outcome.variant for outcome in self.outcomes))
        return {name: found[name] for name in order}


def read_outcome(variant: str, seed: int, folder: Path) -> Outcome:
    """What a finished run left behind.

    Args:
        variant: its name.
        seed: its seed.
        folder: of a recipe's run.
    """
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    rows = [row for row in read_metrics(folder / "metrics.jsonl") if row.get("generated_tokens") is not None]
    return Outcome(
        variant=variant,
        seed=seed,
        before=summary["before"]["accuracy"],
        after=summary["after"]["accuracy"],
        problems=summary["after"]["problems"],
        steps=summary["steps"],
        generated_tokens=int(rows[-1]["generated_tokens"]),
        seconds=summary["seconds"],
        tokens=[int(row["generated_tokens"]) for row in rows],
        rewards=[row["reward"] for row in rows],
    )


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean over seeds and its 95 % interval by Student's t; from minus to plus infinity for a single seed.

    Args:
        values: one for each seed.

    Returns:
        (mean, low, high).
    """
    mean, count = fmean(values), len(values)
    if count < 2:
        return mean, -math.inf, math.inf
    half = T975[min(count - 1, len(T975)) - 1] * stdev(values) / math.sqrt(count)
    return mean, mean - half, mean + half


def _points(values: Sequence[float]) -> str:
    """A difference in percentage points with its interval."""
    mean, low, high = interval([100 * value for value in values])
    return f"{mean:+.1f}" if math.isinf(low) else f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def table(found: Comparison) -> str:
    """Markdown: a row for each variant, differences paired by seed to the first variant.

    Args:
        found: the runs.
    """
    groups = found.by_variant()
    first = next(iter(groups))
    base = {outcome.seed: outcome.after for outcome in groups[first]}
    lines = [
        f"| variant | before | after | gain | against {first} | each seed | steps | tokens |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, runs in groups.items():
        after, low, high = interval([100 * run.after for run in runs])
        apart = [run.after - base[run.seed] for run in runs if run.seed in base]
        cells = [
            name,
            f"{fmean(100 * run.before for run in runs):.1f} %",
            f"{after:.1f} %" + ("" if math.isinf(low) else f" [{max(low, 0.0):.1f}, {min(high, 100.0):.1f}]"),
            f"{fmean(100 * (run.after - run.before) for run in runs):+.1f}",
            "" if name == first or not apart else _points(apart),
            ", ".join(f"{100 * run.after:.1f}" for run in runs),
            f"{fmean(run.steps for run in runs):.0f}",
            f"{fmean(run.generated_tokens for run in runs):,.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def curves(found: Comparison, path: Path) -> None:
    """Write a PNG: reward over generated tokens, a panel for each variant with all its seeds, the first one in grey.

    Args:
        found: the runs.
        path: file to write.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    groups = found.by_variant()
    first = next(iter(groups))
    across = min(4, len(groups))
    down = -(-len(groups) // across)
    figure, axes = plt.subplots(
        down, across, figsize=(3.0 * across, 2.3 * down + 0.3), squeeze=False, sharex=True, sharey=True
    )
    for axis, (name, runs) in zip(axes.flat, groups.items(), strict=False):
        for run in groups[first] if name != first else ():
            axis.plot(run.tokens, running_mean(run.rewards), color="#BBBBBB", linewidth=1.2)
        for index, run in enumerate(runs):
            axis.plot(run.tokens, running_mean(run.rewards), color=COLOURS[index % len(COLOURS)], linewidth=1.5)
        axis.set_title(name, fontsize=10, loc="left")
        axis.grid(alpha=0.25, linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes.flat[len(groups) :]:
        axis.set_axis_off()
    figure.supxlabel("generated tokens", fontsize=9)
    figure.supylabel("reward, running mean", fontsize=9)
    figure.suptitle(f"a line for each seed; grey: {first}", fontsize=10)
    figure.set_layout_engine("constrained")
    figure.savefig(path, dpi=150, metadata={"Software": None})
    plt.close(figure)
