"""Completions of a run on disk, for its report."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from grpo_ext.callbacks.rows import append, drop_after
from grpo_ext.files import write_text
from grpo_ext.groups import Group, Groups

FILE = "completions.jsonl"
# A step may take this part of the file, so that some steps are always there to compare.
STEPS_AT_LEAST = 16


class CompletionsCallback(TrainerCallback):
    """Appends the groups of a logged step to `completions.jsonl`, a JSON object a group, in a file of bounded size.

    When the file is full, every other step is dropped and from then on half as many are kept, so that what is there
    is spread over the whole run. TRL's own `log_completions` grows without a bound and prints what it keeps.

    Args:
        path: the file.
        groups: returns the groups of the newest generation.
        limit: bytes of the file at most.
    """

    def __init__(self, path: Path, groups: Groups, limit: int = 16_000_000) -> None:
        self.path = path
        self.groups = groups
        self.limit = limit
        self._every = 1
        self._seen = 0
        self._newest: list[Group] = []

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must keep: how sparsely groups are kept, and whether the newest ones were written."""
        return {"every": self._every, "seen": self._seen, "written": self._newest == self.groups()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a checkpoint was.

        Args:
            state: what `state_dict` gave.
        """
        self._every, self._seen = state["every"], state["seen"]
        self._newest = self.groups() if state["written"] else []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            drop_after(self.path, state.global_step)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # TRL's table now ends with the rows of the evaluation
        self._newest = self.groups() if state.is_world_process_zero else []

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero or not logs or "reward" not in logs:
            return
        groups = self.groups()
        # Several steps may train on one generation
        if groups == self._newest:
            return
        self._newest = groups
        if self._seen % self._every == 0:
            self._append(state.global_step, groups)
        self._seen += 1

    def _append(self, step: int, groups: list[Group]) -> None:
        lines, size = [], 0
        for index, group in enumerate(groups):
            # ASCII, so that half a character cannot break the file
            line = json.dumps({"step": step, "group": index, "groups": len(groups), **group}) + "\n"
            size += len(line)
            if index and size > self.limit // STEPS_AT_LEAST:
                break
            lines.append(line)
        if append(self.path, "".join(lines)):
            # Thinning takes room for a moment, and is tried again with the next rows
            with suppress(OSError):
                while self.path.stat().st_size > self.limit and self._thin():
                    self._every *= 2

    def _thin(self) -> bool:
        """Drop every other step; False where only one is left."""
        with self.path.open(encoding="utf-8") as file:
            lines = [line for line in file if line.endswith("}\n")]
        of_lines = [json.loads(line)["step"] for line in lines]
        steps = list(dict.fromkeys(of_lines))
        kept = set(steps[::2])
        write_text(self.path, "".join(line for line, step in zip(lines, of_lines, strict=True) if step in kept))
        return len(steps) > 1
