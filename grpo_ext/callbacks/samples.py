"""What the policy writes, shown while it learns."""

import io
import math
import shutil
import sys
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text
from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from grpo_ext.groups import Group, Groups
from grpo_ext.visible import visible

# Characters of a text that are shown.
SHOWN = 400


def _spread(group: Group) -> float:
    """Difference between the best and the worst reward of a group."""
    rewards = [row["reward"] for row in group["completions"] if row["reward"] is not None]
    return max(rewards) - min(rewards) if rewards else -math.inf


def _cell(text: str) -> Text:
    text = visible(text.strip())
    return Text(text if len(text) <= SHOWN else text[:SHOWN] + " …")


def _value(value: float | None) -> str:
    return "none" if value is None else f"{value:.3g}"


def sample_table(step: int, groups: list[Group]) -> Table:
    """The best and the worst completion of the group whose rewards differ most.

    Args:
        step: of the optimiser.
        groups: of one generation, at least one.

    Returns:
        A table with the reward of each, its parts where there are several, and its advantage.
    """
    group = max(groups, key=_spread)
    rows = group["completions"]
    known = [row for row in rows if row["reward"] is not None] or rows
    parts = list(known[0]["rewards"])
    note = "" if _spread(group) > 0 else ", all with the same reward, so this group teaches nothing"
    title = Text(f"Step {step}, one of {len(groups)} groups: {len(rows)} completions{note}\n", style="bold")
    title.append(_cell(group["prompt"]).plain, style="not bold")
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, expand=True)
    table.add_column("")
    for name in ["reward", *(parts if len(parts) > 1 else []), "advantage"]:
        table.add_column(Text(name), justify="right")
    table.add_column("answered", ratio=1)
    for label, row in (("best", known[0]), ("worst", known[-1])):
        scores = [row["rewards"][name] for name in parts] if len(parts) > 1 else []
        values = [_value(value) for value in [row["reward"], *scores, row["advantage"]]]
        table.add_row(label, *values, _cell(row["completion"]))
    return table


class SampleCallback(TrainerCallback):
    """Shows the best and the worst completion of a group every few steps, so that a person sees what is learned.

    Args:
        every: steps from one table to the next; 0: never.
        groups: returns the groups of the newest generation.
    """

    def __init__(self, every: int, groups: Groups) -> None:
        self.every = every
        self.groups = groups
        # Step from which the next row with rewards shows a table: with several updates a generation not all rows have
        self._due = 1

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._due = self._after(state.global_step) if state.global_step else 1

    def _after(self, step: int) -> int:
        return step - step % self.every + self.every if self.every > 0 else 0

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        due = self.every > 0 and state.global_step >= self._due
        if not due or not state.is_world_process_zero or not logs or "reward" not in logs:
            return
        self._due = self._after(state.global_step)
        groups = self.groups()
        if groups:
            width = min(shutil.get_terminal_size((100, 24)).columns, 140)
            console = Console(file=io.StringIO(), width=width, force_terminal=sys.stdout.isatty())
            console.print(sample_table(state.global_step, groups))
            lines = console.file.getvalue().rstrip().splitlines()  # type: ignore[attr-defined]
            # Above the bar, not through it
            tqdm.write("\n".join(line.rstrip() for line in lines) + "\n", file=sys.stdout)
