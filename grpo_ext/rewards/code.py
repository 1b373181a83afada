"""A reward for programs: what share of the tests a candidate passes, run in a sandbox."""

import json
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from grpo_ext.rewards import sandbox
from grpo_ext.rewards.rows import Completion, completion_text, reads
from grpo_ext.rewards.sandbox import Limits

Test = str | Mapping[str, str]

_FENCE = re.compile(r"^[ \t]*```([^\n`]*)\n", re.MULTILINE)
_END = re.compile(r"^[ \t]*```[ \t]*$", re.MULTILINE)
_PYTHON = {"python", "python3", "py", ""}
MAX_CHARACTERS = 100_000  # a longer program is not run


def extract_program(text: str) -> str:
    """Return the last fenced Python block of a text that is closed, or the whole text when it has no fence."""
    program, position = None, 0
    while opening := _FENCE.search(text, position):
        closing = _END.search(text, opening.end())
        if closing is None:
            break
        if opening[1].strip().lower() in _PYTHON:
            program = text[opening.end() : closing.start()]
        position = closing.end()
    if program is None:
        return "" if "```" in text else text
    return program


def _passes(program: str, test: Test, reward: "CodeReward") -> bool:
    """Run one test of one program."""
    isolation = reward.isolation or sandbox.isolation()
    if isinstance(test, str):
        word = secrets.token_hex(16)
        stdin = json.dumps({"code": test, "word": word})
        run = sandbox.run_program(program, stdin, reward.limits, reward.packages, isolation, asserts=True)
        return run.status == 0 and run.output.endswith(f"\n{word}\n")
    run = sandbox.run_program(program, test["input"], reward.limits, reward.packages, isolation)
    return run.status == 0 and _lines(run.output) == _lines(test["output"])


def _lines(text: str) -> list[str]:
    """Split printed text into lines; spaces at their ends and empty lines at the end do not count."""
    return [line.rstrip() for line in text.rstrip().split("\n")]


def _tests(cell: Any, row: int) -> list[Test] | None:
    """Check the tests of one row; `None` when it has none."""
    if isinstance(cell, str):
        cell = [cell]
    if not cell:
        return None
    for test in cell:
        pair = isinstance(test, Mapping) and isinstance(test.get("input"), str) and isinstance(test.get("output"), str)
        if not pair and not isinstance(test, str):
            raise ValueError(
                f"column 'tests', row {row}: a test is code with assert statements, or a mapping with the texts "
                f"'input' and 'output'; found {str(test)[:60]!r}."
            )
    return list(cell)


@dataclass(frozen=True)
class CodeReward:
    """The function that `code_reward` returns; a class, so that it can be pickled."""

    limits: Limits
    partial: bool
    workers: int
    packages: tuple[str, ...]
    isolation: str | None
    __name__ = "code"  # TRL logs the reward under it
    columns = ("tests",)

    def __call__(
        self, completions: Sequence[Completion], tests: Sequence[Any] | None = None, **kwargs: Any
    ) -> list[float | None]:
        """Return the share of passed tests of each of the B programs, `None` where a row has no tests."""
        if tests is None or isinstance(tests, str) or len(tests) != len(completions):
            found = "missing" if tests is None else "one string" if isinstance(tests, str) else f"{len(tests)} entries"
            raise ValueError(f"column 'tests' given to reward 'code' is {found}, expected {len(completions)} entries.")
        rows = [
            (completion_text(row), _tests(cell, i))
            for i, (row, cell) in enumerate(zip(completions, tests, strict=True))
        ]
        _ = self.isolation or sandbox.isolation()  # tried out, and warned about, before threads ask for it at once
        with ThreadPoolExecutor(self.workers) as pool:
            return list(pool.map(self._score, rows))

    def _score(self, row: tuple[str, list[Test] | None]) -> float | None:
        text, tests = row
        if tests is None:
            return None
        program = extract_program(text)
        if not program.strip() or len(program) > MAX_CHARACTERS:
            return 0.0
        if not self.partial:
            return float(all(_passes(program, test, self) for test in tests))
        return sum(_passes(program, test, self) for test in tests) / len(tests)


def code_reward(
    limits: Limits | None = None,
    partial: bool = False,
    workers: int | None = None,
    packages: Sequence[str] = (),
    isolation: str | None = None,
) -> CodeReward:
    """Make a reward that runs the Python program of each completion against the tests of its row.

    The dataset column `tests` holds a list per row, either of mappings `{"input": ..., "output": ...}` (standard input
    and what must be printed) or of code with assert statements that is executed after the program. The program is the
    last closed fence of the completion. Every test runs in a process of its own; what breaks a limit, crashes or does
    what is forbidden scores 0 for that test. `grpo_ext.rewards.sandbox` says what is and what is not contained.

    Printed output is compared outside of the sandbox. Assert statements run in the program's own process: leaving
    early does not count as passing, but a program that sets out to cheat there, for example with objects that equal
    everything, can pass. Prefer input and output where a policy may learn to do so.

    Args:
        limits: What each run may use; `None` takes the defaults of `Limits`.
        partial: Whether the score is the share of passed tests, or else 1 only for all of them.
        workers: Programs that run at one time; `None` takes the number of processors, at most 8.
        packages: Folders that programs may import packages from, such as a `site-packages`.
        isolation: `"namespaces"`, `"hooks"`, or `None` for the strongest that works here.

    Returns:
        A reward function named "code".

    Raises:
        ValueError: `workers` or `isolation` is out of range; when called, the column `tests` is missing or malformed.
        SandboxError: When called, the isolation that was asked for does not work on this machine.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"workers is {workers}; at least one program must run at a time.")
    if isolation is not None and isolation not in sandbox.ISOLATIONS:
        raise ValueError(f"isolation is {isolation!r}; choose one of {', '.join(sandbox.ISOLATIONS)}, or None.")
    count = workers if workers is not None else min(8, os.cpu_count() or 1)
    return CodeReward(limits or Limits(), partial, count, tuple(packages), isolation)


@reads("tests")
def code(completions: Sequence[Completion], tests: Sequence[Any] | None = None, **kwargs: Any) -> list[float | None]:
    """Score 1 where the program of a completion passes all tests of its row, else 0: `code_reward` as it comes.

    Args:
        completions: B strings, or B lists of messages.
        tests: Dataset column of B lists of tests, as in `code_reward`.
        kwargs: What else TRL passes; not used.

    Returns:
        B scores, `None` where a row has no tests.

    Raises:
        ValueError: The column `tests` is missing or malformed.
    """
    return code_reward()(completions, tests)
