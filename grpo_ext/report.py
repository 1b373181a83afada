"""What a run leaves behind for people: a summary and a learning curve."""

import importlib.metadata
import json
import os
from pathlib import Path
from typing import Any

from grpo_ext import __version__

PACKAGES = ("torch", "transformers", "trl", "peft", "datasets", "accelerate")


def versions() -> dict[str, str]:
    """Versions of the packages that a result depends on.

    Returns:
        Name to version.
    """
    return {"grpo-ext": __version__} | {name: importlib.metadata.version(name) for name in PACKAGES}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file under a temporary name and rename it, so that a reader never sees half of it.

    Args:
        path: the file.
        content: what to write.
    """
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of a `metrics.jsonl` that belong to training steps.

    Args:
        path: the file.

    Returns:
        One dict a logged step, in order.
    """
    if not path.is_file():
        return []
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if row.get("reward") is not None]


def learning_curve(metrics: Path, picture: Path, title: str) -> None:
    """Draw reward, completion length and, where there is one, KL against the step.

    Args:
        metrics: a `metrics.jsonl`.
        picture: PNG file to write.
        title: headline.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = read_metrics(metrics)
    panels = {"reward": "reward", "completions/mean_length": "completion length (tokens)", "kl": "KL (nats per token)"}
    shown = {key: label for key, label in panels.items() if any(row.get(key) is not None for row in rows)}
    figure, axes = plt.subplots(1, max(len(shown), 1), figsize=(4.6 * max(len(shown), 1), 3.4), squeeze=False)
    for axis, (key, label) in zip(axes[0], shown.items(), strict=False):
        points = [(row["step"], float(row[key])) for row in rows if row.get(key) is not None]
        axis.plot([step for step, _ in points], [value for _, value in points], marker="o", markersize=3)
        axis.set_xlabel("step")
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(picture, dpi=130)
    plt.close(figure)
