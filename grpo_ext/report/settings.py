"""How runs were made: commands, settings, versions and hardware as text, and what differs between runs."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from grpo_ext.report.reading import Run
from grpo_ext.visible import visible


def words(value: Any) -> str:
    """A setting as text.

    Args:
        value: anything that JSON holds.
    """
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return visible(text)


def _hardware(found: Any) -> Iterator[tuple[str, str]]:
    if not isinstance(found, Mapping):
        return
    gpus = [gpu for gpu in found.get("gpus") or [] if isinstance(gpu, Mapping)]
    for index, gpu in enumerate(gpus):
        yield f"GPU {index}", f"{words(gpu.get('name'))}, {_gib(gpu.get('memory'))}"
    if not gpus:
        yield "GPU", "none"
    yield "CPU", words(found.get("cpu"))
    yield "cores", words(found.get("cores"))
    yield "memory", _gib(found.get("memory"))


def _gib(size: Any) -> str:
    return f"{size / 2**30:.0f} GiB" if isinstance(size, int | float) else "unknown"


def setup(run: Run) -> dict[str, Any]:
    """Command and settings of a run by heading; those that are unset are left out.

    Args:
        run: with its summary.

    Returns:
        `name`, `command`, and `tables`: heading to name to value.
    """
    summary = run.summary

    def rows(key: str) -> dict[str, str]:
        found = summary.get(key)
        known = found.items() if isinstance(found, Mapping) else ()
        return {visible(str(name)): words(value) for name, value in known if value is not None}

    versions = rows("versions") | ({"python": words(summary["python"])} if "python" in summary else {})
    tables = {
        "Recipe": rows("recipe"),
        "Trainer, where not at its default": rows("config"),
        "Versions": versions,
        "Hardware": dict(_hardware(summary.get("hardware"))),
    }
    return {
        "name": run.name,
        "command": words(summary["command"]) if "command" in summary else "",
        "tables": {heading: found for heading, found in tables.items() if found},
    }


def notes(runs: Sequence[Run]) -> list[str]:
    """What is missing or torn, once for all runs it is true of.

    Args:
        runs: at least one.
    """
    of_note: dict[str, list[str]] = {}
    for run in runs:
        for note in run.notes:
            of_note.setdefault(note, []).append(run.name)
    return [note if len(runs) == 1 else f"{', '.join(names)}: {note}" for note, names in of_note.items()]


def differing(setups: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Settings in which several runs differ.

    Args:
        setups: of `setup`, one a run.

    Returns:
        Name to a value a run.
    """
    # A table that a run has not written down says nothing about a difference
    common = [heading for heading in setups[0]["tables"] if all(heading in setup["tables"] for setup in setups)]
    flat = [{name: value for key in common for name, value in setup["tables"][key].items()} for setup in setups]
    names = dict.fromkeys(name for rows in flat for name in rows)
    found = {name: [rows.get(name, "unset") for rows in flat] for name in names if name != "output_dir"}
    return {name: values for name, values in found.items() if len(set(values)) > 1}
