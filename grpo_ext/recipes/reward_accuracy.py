"""How good a reward model is: its accuracy on held-out pairs, and what is said of it."""

import json
from collections import defaultdict
from statistics import fmean
from typing import Any

from datasets import Dataset

from grpo_ext.evaluation.estimators import bootstrap_interval
from grpo_ext.rewards.reward_model import RewardModel, doubt

# What is said where nothing was held out
UNKNOWN: dict[str, Any] = {"accuracy": None, "interval": None, "held_out_pairs": 0, "held_out_prompts": 0}


def accuracy(reader: RewardModel, pairs: Dataset) -> dict[str, Any]:
    """Share of pairs whose chosen answer has the higher score; a tie counts one half.

    Pairs of one prompt are not independent, so the share is taken for each prompt, and the mean and its interval over
    prompts.

    Args:
        reader: the reward model.
        pairs: `prompt`, `chosen`, `rejected`, and where there is one `kind`, by which the accuracy is shown as well.

    Returns:
        `accuracy`, its 95 % `interval`, `held_out_pairs` that were not too long, `held_out_prompts`, mean `margin`,
        and the accuracy `by_kind`.
    """
    chosen, rejected = (reader(prompts=pairs["prompt"], completions=pairs[side]) for side in ("chosen", "rejected"))
    kinds = pairs["kind"] if "kind" in pairs.column_names else [None] * len(pairs)
    margins: list[float] = []
    by_prompt: dict[str, list[float]] = defaultdict(list)
    by_kind: dict[str, list[float]] = defaultdict(list)
    for one, other, kind, prompt in zip(chosen, rejected, kinds, pairs["prompt"], strict=True):
        if one is None or other is None:
            continue
        margins.append(one - other)
        right = float(one > other) + 0.5 * (one == other)
        by_prompt[json.dumps(prompt)].append(right)
        if kind is not None:
            by_kind[kind].append(right)
    if not margins:
        return UNKNOWN
    found = bootstrap_interval([fmean(values) for values in by_prompt.values()])
    return {
        "accuracy": found.value,
        "interval": [found.low, found.high],
        "held_out_pairs": len(margins),
        "held_out_prompts": len(by_prompt),
        "margin": fmean(margins),
        **({"by_kind": {kind: fmean(by_kind[kind]) for kind in sorted(by_kind)}} if by_kind else {}),
    }


def told(summary: dict[str, Any]) -> str:
    """The accuracy of a reward model in a line, with a warning where it is near one half."""
    warning = doubt(summary)
    if summary["accuracy"] is None:
        return f"Warning: {warning}"
    low, high = summary["interval"]
    line = f"{summary['accuracy']:.1%} of {summary['held_out_pairs']} held-out pairs (95% {low:.1%} to {high:.1%})"
    return line if warning is None else f"{line}\nWarning: {warning}"
