"""Curves of runs as PNG files, for papers and for machines without a browser."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grpo_ext.report.panels import Panel, panels, running_mean, series
from grpo_ext.report.reading import Run, read_metrics

# Okabe and Ito's colours, which readers with any colour vision can tell apart; black is left to the axes.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1", "#7F7F7F")
LEARNING_CURVE = ("reward", "completions/mean_length", "kl")


def draw(axis: Any, runs: Sequence[Run], panel: Panel) -> None:
    """Draw one panel with matplotlib.

    Args:
        axis: of matplotlib.
        runs: a line each.
        panel: what is drawn.
    """
    scale = 100.0 if panel.unit == "%" else 1.0
    for index, run in enumerate(runs):
        steps, values = series(run, panel.key)
        values = [scale * value for value in values]
        colour = COLOURS[index % len(COLOURS)]
        smooth = panel.smooth and len(values) >= 20
        axis.plot(
            steps,
            values,
            color=colour,
            alpha=0.3 if smooth else 1.0,
            linewidth=1.0 if smooth else 1.5,
            marker="o" if len(values) < 20 else None,
            markersize=3,
            label=None if smooth else run.name,
        )
        if smooth:
            axis.plot(steps, running_mean(values), color=colour, linewidth=2.0, label=run.name)
    axis.set_title(panel.title, fontsize=10, loc="left")
    axis.set_xlabel("optimiser step")
    axis.set_ylabel(panel.unit)
    if panel.unit:
        low, high = axis.get_ylim()
        axis.set_ylim(min(0.0, low), max(1.0, high) if panel.unit == "%" else max(0.0, high))
    axis.ticklabel_format(axis="y", style="sci", scilimits=(-3, 5))
    axis.grid(alpha=0.25, linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)


def picture(runs: Sequence[Run], chosen: Sequence[Panel], path: Path, title: str = "", across: int = 3) -> None:
    """Write a PNG with a panel each, and a legend where there are several runs.

    Args:
        runs: a line each.
        chosen: what is drawn.
        path: file to write.
        title: headline.
        across: panels in a row at most.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    across = min(across, len(chosen))
    down = -(-len(chosen) // across)
    figure, axes = plt.subplots(down, across, figsize=(3.6 * across, 2.7 * down + 0.4), squeeze=False)
    for axis, panel in zip(axes.flat, chosen, strict=False):
        draw(axis, runs, panel)
    for axis in axes.flat[len(chosen) :]:
        axis.set_axis_off()
    # A dollar sign would start a formula
    figure.suptitle(title.replace("$", r"\$"), fontsize=11)
    if len(runs) > 1:
        handles, labels = axes.flat[0].get_legend_handles_labels()
        names = [label.replace("$", r"\$") for label in labels]
        figure.legend(handles, names, loc="outside lower center", ncols=min(4, len(runs)), frameon=False, fontsize=9)
    figure.set_layout_engine("constrained")
    figure.savefig(path, dpi=200, metadata={"Software": None})
    plt.close(figure)


def export(runs: Sequence[Run], path: Path, title: str = "") -> None:
    """Write all panels that the runs have values for as one PNG.

    Args:
        runs: a line each.
        path: file to write.
        title: headline.
    """
    found = panels(runs)
    found.pop("Also logged", None)
    picture(runs, [panel for rows in found.values() for panel in rows], path, title)


def learning_curve(metrics: Path, picture_file: Path, title: str) -> None:
    """Draw reward, completion length and, where there is one, KL against the step.

    Args:
        metrics: a `metrics.jsonl`.
        picture_file: PNG file to write.
        title: headline.
    """
    run = Run(name="", folder=metrics.parent, metrics=read_metrics(metrics))
    rows = {panel.key: panel for found in panels([run]).values() for panel in found}
    chosen = [rows[key] for key in LEARNING_CURVE if key in rows]
    picture([run], chosen or [Panel("reward", "Reward", "reward")], picture_file, title)
