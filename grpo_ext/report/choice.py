"""Which completions go onto the page, whose size is bounded, and how they are written there."""

import json
from collections.abc import Sequence
from typing import Any

from grpo_ext.report.reading import Run, finite
from grpo_ext.visible import visible

LONGEST = 6000  # characters of one text


def _text(text: str) -> str:
    shown = visible(text)
    return shown if len(shown) <= LONGEST else f"{shown[:LONGEST]}\n[{len(shown) - LONGEST} more characters]"


def _number(value: Any) -> float | None:
    return float(f"{value:.4g}") if finite(value) else None


def _row(completion: dict[str, Any]) -> list[Any]:
    rewards = completion.get("rewards")
    parts = rewards if isinstance(rewards, dict) else {}
    return [
        _number(completion.get("reward")),
        _number(completion.get("advantage")),
        {visible(str(name)): _number(value) for name, value in parts.items()},
        _text(completion["completion"]),
    ]


def _size(value: Any) -> int:
    return len(json.dumps(value, ensure_ascii=False).encode())


def chosen_completions(run: Run, budget: int) -> dict[str, Any]:
    """Steps spread evenly over the run, as many as fit; where one step is too large, its first groups.

    Args:
        run: what was kept.
        budget: bytes at most, about.

    Returns:
        `kept` (steps on disk) and `steps`: each with `step`, `groups` (how many there were) and `rows`, one
        [prompt, [[reward, advantage, parts, completion], ...]] a group.
    """
    by_step: dict[int, list[dict[str, Any]]] = {}
    for group in run.groups:
        by_step.setdefault(int(group["step"]), []).append(group)
    steps = sorted(by_step)
    # A few steps tell the size of the others
    probe = steps[:: max(1, len(steps) // 8)]
    typical = sum(_size(_step(by_step[step], budget)) for step in probe) / max(1, len(probe))
    count = max(2, min(len(steps), int(budget / max(typical, 1.0))))
    places = (
        {round(i * (len(steps) - 1) / (count - 1)) for i in range(count)} if len(steps) > 1 else set(range(len(steps)))
    )
    found, room = [], float(budget)
    for left, place in zip(range(len(places), 0, -1), sorted(places), strict=True):
        found.append(_step(by_step[steps[place]], room / left))
        room -= _size(found[-1])
    return {"kept": len(steps), "steps": found}


def _step(groups: Sequence[dict[str, Any]], room: float) -> dict[str, Any]:
    rows: list[Any] = []
    for group in groups:
        row = [_text(group["prompt"]), [_row(completion) for completion in group["completions"]]]
        room -= _size(row)
        if rows and room < 0:
            break
        rows.append(row)
    total = groups[0].get("groups")
    return {
        "step": int(groups[0]["step"]),
        "groups": max(len(groups), int(total) if finite(total) else 0),
        "rows": rows,
    }
