"""Accuracy before and after a run, for people and in the hub's machine-readable form."""

from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult

from grpo_ext.data.sets import SETS, DataSet, title_of
from grpo_ext.evaluation.changes import changes
from grpo_ext.evaluation.estimators import LEVEL, Interval


def shown(score: Interval | None) -> str:
    """A score for a table."""
    return "not measured" if score is None else f"{score.value:.1%} [{score.low:.1%}, {score.high:.1%}]"


def table(summary: Mapping[str, Any]) -> str:
    """A Markdown table of the accuracies with their intervals, empty where nothing was measured."""
    rows = [
        f"| {title_of(row.name)} | {row.problems} | {row.reading} | {shown(row.before)} | {shown(row.after)} |"
        for row in changes(summary)
    ]
    if not rows:
        return ""
    head = ["| held-out problems | number | answers read | before | after |", "|---|---|---|---|---|"]
    return "\n".join(head + rows)


def eval_results(summary: Mapping[str, Any]) -> list[EvalResult]:
    """The accuracies after training as the hub's `model-index` has them; intervals and the start stand in `args`.

    Args:
        summary: content of `summary.json`.

    Returns:
        One result a data set and reading.
    """
    results = []
    for row in changes(summary):
        if row.after is None:
            continue
        data = SETS.get(row.name, DataSet(title_of(row.name)))
        args: dict[str, Any] = {
            "answers_read": row.reading,
            "problems": row.problems,
            "confidence_level": LEVEL,
            "confidence_interval": [round(row.after.low, 6), round(row.after.high, 6)],
        }
        if row.before is not None:
            args["before_training"] = round(row.before.value, 6)
            args["before_training_confidence_interval"] = [round(row.before.low, 6), round(row.before.high, 6)]
        results.append(
            EvalResult(
                task_type="text-generation",
                task_name="Text Generation",
                dataset_type=data.measured or row.name.replace("+", "-"),
                dataset_name=data.title,
                dataset_config=data.config,
                dataset_split=data.split,
                metric_type="accuracy",
                metric_name=f"greedy pass@1, {row.reading} reading",
                metric_value=round(row.after.value, 6),
                metric_args=args,
            )
        )
    return results
