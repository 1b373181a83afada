"""Accuracy before and after a run, for people and in the hub's machine-readable form."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from huggingface_hub import EvalResult

from grpo_ext.data.cmath import HUB as CMATH
from grpo_ext.data.gsm8k import HUB as GSM8K
from grpo_ext.data.gsm8k import HUB_CONFIG as GSM8K_CONFIG
from grpo_ext.data.math import HUB as MATH
from grpo_ext.evaluation.estimators import LEVEL, Interval, bootstrap_interval


@dataclass(frozen=True)
class Problems:
    """How a data set of the recipes is called elsewhere.

    Attributes:
        title: name for people.
        trained: the hub's name of the training rows, or None.
        measured: the hub's name of the held-out rows, or None.
        config: configuration of that data set, or None.
        split: its held-out split.
    """

    title: str
    trained: str | None = None
    measured: str | None = None
    config: str | None = None
    split: str = "test"


DATA: dict[str, Problems] = {
    "gsm8k": Problems("GSM8K", GSM8K, GSM8K, GSM8K_CONFIG),
    "math": Problems("MATH", MATH["train"], MATH["test"]),
    "cmath": Problems("CMATH", None, CMATH, split="validation"),
    "arithmetic": Problems("word problems built into grpo_ext"),
}
# Key of a measurement -> name of the metric
READINGS = {"accuracy": "strict", "accuracy_lenient": "lenient"}


def title_of(name: str) -> str:
    """What a data set of the recipes, or a mixture of them, is called.

    Args:
        name: as in a recipe's `dataset`, mixtures with a plus sign.

    Returns:
        Its name for people; an unknown one stays as it is.
    """
    return " and ".join(DATA[part].title if part in DATA else part for part in name.split("+"))


@dataclass(frozen=True)
class Comparison:
    """One way to read the answers to one set of problems, before and after training.

    Attributes:
        dataset: name as in the recipes.
        reading: key of `READINGS`.
        problems: how many.
        before: score of the policy that the training began with.
        after: score of what is uploaded, or None where it was not measured.
    """

    dataset: str
    reading: str
    problems: int
    before: Interval | None
    after: Interval | None


def _score(measured: Mapping[str, Any] | None, key: str) -> Interval | None:
    """The share of right answers with the interval that was measured.

    A run of an older version noted none; each answer being right or wrong, its share and number say all.
    """
    if not measured or measured.get(key) is None:
        return None
    noted = measured.get(f"{key}_interval")
    if noted is not None:
        return Interval(float(measured[key]), *map(float, noted))
    problems = int(measured["problems"])
    right = round(float(measured[key]) * problems)
    return bootstrap_interval([1.0] * right + [0.0] * (problems - right))


def shown(score: Interval | None) -> str:
    """A score for a table."""
    return "not measured" if score is None else f"{score.value:.1%} [{score.low:.1%}, {score.high:.1%}]"


def comparisons(summary: Mapping[str, Any]) -> Iterator[Comparison]:
    """What a run measured before and after.

    Args:
        summary: content of `summary.json`.

    Yields:
        One comparison a data set and reading.
    """
    one = {str(summary.get("dataset")): {"before": summary.get("before"), "after": summary.get("after")}}
    for name, pair in (summary.get("evaluations") or one).items():
        measured = pair.get("after") or pair.get("before")
        for key in READINGS:
            if measured and measured.get(key) is not None:
                before, after = _score(pair.get("before"), key), _score(pair.get("after"), key)
                yield Comparison(name, key, int(measured["problems"]), before, after)


def table(summary: Mapping[str, Any]) -> str:
    """A Markdown table of the accuracies with their intervals, empty where nothing was measured."""
    rows = [
        f"| {title_of(row.dataset)} | {row.problems} | {READINGS[row.reading]} "
        f"| {shown(row.before)} | {shown(row.after)} |"
        for row in comparisons(summary)
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
    for row in comparisons(summary):
        if row.after is None:
            continue
        data = DATA.get(row.dataset, Problems(title_of(row.dataset)))
        args: dict[str, Any] = {
            "answers_read": READINGS[row.reading],
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
                dataset_type=data.measured or row.dataset.replace("+", "-"),
                dataset_name=data.title,
                dataset_config=data.config,
                dataset_split=data.split,
                metric_type="accuracy",
                metric_name=f"greedy pass@1, {READINGS[row.reading]} reading",
                metric_value=round(row.after.value, 6),
                metric_args=args,
            )
        )
    return results
