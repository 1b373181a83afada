"""The findings of `doctor` as text for people and as plain values for programs."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from grpo_ext.doctor.backends import BACKENDS, Problem, check_folders, local_tag, notes
from grpo_ext.doctor.bounds import OWN, bounds, merged, shown
from grpo_ext.doctor.environment import CPU_FEATURES, SHOWN, Environment


@dataclass(frozen=True)
class Findings:
    """What the checks said of one environment.

    Attributes:
        env: the environment.
        backends: row of `BACKENDS` to its problems, empty where it works.
        folders: problems with folders.
        notes: what works otherwise than one may expect.
        chosen: rows that the user asked for.
    """

    env: Environment
    backends: Mapping[str, tuple[Problem, ...]]
    folders: tuple[Problem, ...]
    notes: tuple[str, ...]
    chosen: tuple[str, ...]

    @property
    def works(self) -> bool:
        """Whether everything that was asked for can run."""
        return not self.folders and not any(self.backends[name] for name in self.chosen)


def examine(env: Environment, chosen: Sequence[str] = ("transformers",)) -> Findings:
    """Run every check.

    Args:
        env: the environment.
        chosen: rows of `BACKENDS` that must work.
    """
    return Findings(
        env=env,
        backends={name: tuple(check(env)) for name, (_, check) in BACKENDS.items()},
        folders=tuple(check_folders(env)),
        notes=tuple(notes(env)),
        chosen=tuple(chosen),
    )


def as_json(found: Findings) -> dict[str, Any]:
    """The findings as values that json can write.

    Args:
        found: the findings.
    """
    env = asdict(found.env)
    env["cpu_flags"] = sorted(name for name, flag in CPU_FEATURES.items() if flag in found.env.cpu_flags)
    del env["requires"]
    return {
        "works": found.works,
        "chosen": list(found.chosen),
        "environment": env,
        "backends": {name: [asdict(problem) for problem in problems] for name, problems in found.backends.items()},
        "folders": [asdict(problem) for problem in found.folders],
        "notes": list(found.notes),
    }


def as_text(found: Findings) -> str:
    """The findings as lines of text.

    Args:
        found: the findings.
    """
    return "\n".join(
        [
            f"grpo_ext {found.env.versions.get(OWN, '')}, Python {found.env.versions['python']}, {found.env.platform}",
            "",
            "Versions",
            *_versions(found.env),
            "",
            "Machine",
            *_machine(found.env),
            "",
            "Back ends",
            *_backends(found),
            "",
            "Folders",
            *_folders(found),
            *(["", "Notes", *(f"  {note}" for note in found.notes)] if found.notes else []),
            "",
            _verdict(found),
        ]
    )


def _versions(env: Environment) -> Iterator[str]:
    own = [bound for extra in ("", "quantization", "vllm") for bound in bounds(env.requires, extra)]
    narrow = list(bounds(env.requires, "unsloth", own_only=True))
    for name in SHOWN:
        asked, under = (shown(merged(some, name)) for some in (own, narrow))
        if name in env.versions or any(bound.name == name for bound in bounds(env.requires)):
            extra = f"   under Unsloth {under}" if under and name != "unsloth" else ""
            yield f"  {name:16}{env.versions.get(name, 'missing'):18}{asked}{extra}".rstrip()


def _machine(env: Environment) -> Iterator[str]:
    features = ", ".join(f"{name} {'yes' if flag in env.cpu_flags else 'no'}" for name, flag in CPU_FEATURES.items())
    yield f"  CPU   {env.cpu}, {env.cores} cores, {env.memory / 2**30:.0f} GiB"
    if env.cpu_flags:
        yield f"        {features}"
    tag = local_tag(env.versions.get("torch", ""))
    cuda = env.cuda or ("none, a CPU build" if tag == "cpu" else "none")
    yield f"  torch {env.versions.get('torch', 'missing')}, CUDA {cuda}"
    yield f"  NVIDIA driver {env.driver or 'none'}"
    for gpu in env.gpus:
        major, minor = gpu.capability
        bf16 = "yes" if env.bf16 else "no"
        yield f"  GPU   {gpu.name}, {gpu.memory / 2**30:.0f} GiB, compute capability {major}.{minor}, bf16 {bf16}"
    if not env.gpus:
        yield "  GPU   none that torch can use"


def _backends(found: Findings) -> Iterator[str]:
    told: dict[Problem, str] = {}
    for name, problems in found.backends.items():
        title = BACKENDS[name][0]
        yield f"  {'no ' if problems else 'yes'}  {title}"
        above = {told[problem]: None for problem in problems if problem in told}
        new = [problem for problem in problems if problem not in told]
        if above:
            yield f"         as for {', '.join(above)}"
        for index, problem in enumerate(new):
            yield f"         {problem.reason}"
            if index + 1 == len(new) or new[index + 1].fix != problem.fix:
                yield f"         > {problem.fix}"
        told |= dict.fromkeys(new, title)


def _folders(found: Findings) -> Iterator[str]:
    for role, folder in found.env.folders.items():
        state = "no " if folder.error else "yes"
        rest = f": {folder.error}" if folder.error else f", {folder.free / 2**30:.0f} GiB free"
        home = str(Path.home())
        path = f"~{folder.path.removeprefix(home)}" if folder.path.startswith(home + os.sep) else folder.path
        yield f"  {state}  {role:10} {path}{rest}"


def _verdict(found: Findings) -> str:
    titles = ", ".join(BACKENDS[name][0] for name in found.chosen)
    if found.works:
        return f"Asked for: {titles}. It works."
    stops = [problem for name in found.chosen for problem in found.backends[name]] + list(found.folders)
    return f"Asked for: {titles}. It does not work: {stops[0].reason}\n> {stops[0].fix}"
