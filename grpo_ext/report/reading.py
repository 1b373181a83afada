"""What a run left in its folder, read with patience: a missing or torn file becomes a note, not an end."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from grpo_ext.faults import first_line

METRICS, COMPLETIONS, SUMMARY, HEALTH = "metrics.jsonl", "completions.jsonl", "summary.json", "health.jsonl"


@dataclass(frozen=True)
class Run:
    """One run as its folder tells it.

    Attributes:
        name: shown in legends.
        folder: where it lies.
        metrics: a row a logged step, in order; finite numbers only.
        groups: `step`, `group`, `groups`, `prompt` and `completions`, a row a kept group.
        summary: evaluation before and after, command, recipe, config, versions, hardware; empty where there is none.
        findings: `step`, `detector`, `severity` and `message`, a row a finding of the health callback.
        notes: sentences on what is missing or torn.
    """

    name: str
    folder: Path
    metrics: list[dict[str, float]]
    groups: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    findings: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def json_lines(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """The objects of a file with a JSON object a line.

    Args:
        path: the file.

    Returns:
        The objects, and the numbers of the lines that hold none.
    """
    rows, torn = [], []
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
            # A number of more than 4300 digits is a ValueError as well
            except (ValueError, RecursionError):
                row = None
            if isinstance(row, dict):
                rows.append(row)
            elif line.strip():
                torn.append(number)
    return rows, torn


def finite(value: Any) -> TypeGuard[float]:
    """Whether a logged value is a number that can be drawn.

    Args:
        value: anything that JSON holds.
    """
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def by_step(rows: list[dict[str, Any]]) -> list[dict[str, float]]:
    """One row a step: what training and evaluation logged there, and after a resume what was logged last.

    Args:
        rows: as logged.

    Returns:
        Rows in the order of their steps, with finite numbers only.
    """
    steps: dict[int, dict[str, float]] = {}
    for row in rows:
        if finite(row.get("step")):
            kept = {key: value for key, value in row.items() if finite(value)}
            steps.setdefault(int(row["step"]), {}).update(kept)
    return [steps[step] for step in sorted(steps)]


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Rows of a `metrics.jsonl` that belong to training steps.

    Args:
        path: the file.

    Returns:
        One dict a logged step, in order.
    """
    if not path.is_file():
        return []
    return [row for row in by_step(json_lines(path)[0]) if "reward" in row]


def _trainer_states(folder: Path) -> Iterator[Path]:
    """Logs that transformers keeps with its checkpoints, the newest first."""
    found = [*folder.glob("checkpoint-*/trainer_state.json"), *folder.glob("trainer_state.json")]
    number = {path: path.parent.name.removeprefix("checkpoint-") for path in found}
    yield from sorted(found, key=lambda path: int(number[path]) if number[path].isdigit() else math.inf, reverse=True)


def _lines(folder: Path, name: str, notes: list[str], missing: str = "") -> list[dict[str, Any]]:
    path = folder / name
    if not path.is_file():
        if missing:
            notes.append(missing)
        return []
    rows, torn = json_lines(path)
    if torn:
        which = f"line {torn[0]} is" if len(torn) == 1 else f"{len(torn)} lines (the first is line {torn[0]}) are"
        notes.append(f"{name}: {which} no JSON object and left out; a run that is killed leaves such a line.")
    return rows


def _object(path: Path, notes: list[str]) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, dict):
        return found
    notes.append(f"{path.name} is no JSON object and was left out.")
    return {}


def _stock_groups(folder: Path, notes: list[str]) -> list[dict[str, Any]]:
    """Completions that TRL wrote itself with `log_completions`, a file a step."""
    files = sorted((folder / "completions").glob("completions_*.parquet"))
    if not files:
        return []
    import pyarrow
    import pyarrow.parquet

    from grpo_ext.groups import grouped

    found = []
    for path in files:
        try:
            table = pyarrow.parquet.read_table(path).to_pydict()
        except (pyarrow.ArrowException, OSError) as error:
            notes.append(f"{path.name} cannot be read and was left out ({first_line(error)[:120]}).")
            continue
        if not table.get("step") or not {"prompt", "completion", "advantage"} <= set(table):
            continue
        others = {name: table[name] for name in table if name not in ("step", "prompt", "completion", "advantage")}
        rewards = {
            name: values
            for name, values in others.items()
            if all(value is None or isinstance(value, int | float) for value in values)
        }
        groups = grouped(table["prompt"], table["completion"], rewards, [1.0] * len(rewards), table["advantage"])
        step = int(table["step"][0])
        found += [{"step": step, "group": i, "groups": len(groups), **group} for i, group in enumerate(groups)]
    return found


def _is_group(row: dict[str, Any]) -> bool:
    completions = row.get("completions")
    return (
        finite(row.get("step"))
        and isinstance(row.get("prompt"), str)
        and isinstance(completions, list)
        and bool(completions)
        and all(isinstance(one, dict) and isinstance(one.get("completion"), str) for one in completions)
    )


def _groups(folder: Path, notes: list[str]) -> list[dict[str, Any]]:
    rows = [row for row in _lines(folder, COMPLETIONS, notes) if _is_group(row)]
    if not rows:
        rows = _stock_groups(folder, notes)
    if not rows:
        notes.append(
            f"No completions were kept: there is neither {COMPLETIONS} (recipes write it unless completions_mb is 0) "
            "nor a folder completions (TRL's log_completions)."
        )
    # After a resume a step may be there twice
    newest = {(int(row["step"]), row.get("group", 0)): row for row in rows}
    return [newest[key] for key in sorted(newest, key=lambda key: (key[0], str(key[1]).zfill(9)))]


def read_run(folder: Path, name: str | None = None) -> Run:
    """Read the folder of a run.

    Args:
        folder: `output_dir` of a recipe, or of a trainer of TRL with a checkpoint in it.
        name: shown in legends; None takes the folder's.

    Returns:
        The run, with notes on what is not there.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds no log of a GRPO run.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder; give the output folder of a run.")
    notes: list[str] = []
    metrics = by_step(_lines(folder, METRICS, notes))
    if not metrics:
        logs = (_object(path, notes).get("log_history") for path in _trainer_states(folder))
        metrics = next((by_step([row for row in log if isinstance(row, dict)]) for log in logs if log), [])
    if not any("reward" in row for row in metrics):
        raise ValueError(
            f"{folder} holds no log of a GRPO run: neither {METRICS} nor a checkpoint's trainer_state.json has a row "
            "with `reward`; give the output folder of a run that made at least one step."
        )
    summary = _object(folder / SUMMARY, notes)
    if not summary:
        notes.append(f"There is no {SUMMARY}: the run is not over, or was stopped; no evaluation is known.")
    return Run(
        name=name or folder.resolve().name,
        folder=folder,
        metrics=metrics,
        groups=_groups(folder, notes),
        summary=summary,
        findings=_lines(folder, HEALTH, notes),
        notes=notes,
    )
