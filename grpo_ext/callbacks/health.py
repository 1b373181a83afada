"""Watches a run: findings above the progress bar and in `health.jsonl`, and a stop where one was asked for."""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from grpo_ext.callbacks.rows import append, drop_after
from grpo_ext.health import DETECTORS, Detector, Finding, Monitor, at_the_end, at_the_start

logger = logging.getLogger("grpo_ext")

# Exit code of a recipe that a finding has stopped
STOPPED = 3


class HealthCallback(TrainerCallback):
    """Says what is wrong with a run as soon as it is logged, and why a loss near 0 is not.

    A resumed run goes on with the history of its checkpoint: what was found before is not found again.

    Args:
        path: file that findings are appended to, emptied when a run begins at step 0.
        detectors: name to detector, see `grpo_ext.health.chosen` for other thresholds.
        stop_on: detectors whose finding saves a checkpoint and ends the training after the step.

    Attributes:
        stopped_by: the finding that ended the training, or None.
    """

    def __init__(self, path: Path, detectors: Mapping[str, Detector] = DETECTORS, stop_on: Sequence[str] = ()) -> None:
        self.path = path
        self.detectors = detectors
        self.stop_on = tuple(stop_on)
        self.stopped_by: Finding | None = None
        self._begin()

    def _begin(self) -> None:
        self.stopped_by = None
        self._monitor = Monitor(self.detectors)
        self._rows: list[dict[str, Any]] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._begin()
        if state.is_world_process_zero:
            drop_after(self.path, state.global_step)
        for row in state.log_history:
            if _of_training(row):
                self._add(row["step"], row)

    def _add(self, step: int, row: dict[str, Any]) -> list[Finding]:
        self._rows.append(row)
        return self._monitor.add(step, row)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not _of_training(logs):
            return
        assert logs is not None
        # The row that Trainer keeps: a copy would double what a long run holds
        findings = self._add(state.global_step, state.log_history[-1])
        if state.is_world_process_zero:
            if len(self._rows) == 1:
                logger.info("%s", at_the_start(logs))
            self._say(findings)
        if self.stop_on:
            self._stop(findings, control)

    def _say(self, findings: list[Finding]) -> None:
        for finding in findings:
            logger.warning("%s", finding)
        rows = [finding.row() for finding in findings]
        for row in rows:
            row["value"] = row["value"] if math.isfinite(row["value"]) else None
        append(self.path, "".join(json.dumps(row) + "\n" for row in rows))

    def _stop(self, findings: list[Finding], control: TrainerControl) -> None:
        # One process decides, because a process that stops alone leaves the others waiting for it
        decision = [next((finding for finding in findings if finding.detector in self.stop_on), None)]
        broadcast_object_list(decision)
        if decision[0] is not None:
            self.stopped_by = self.stopped_by or decision[0]
            control.should_save = True
            control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero:
            return
        if self._rows:
            logger.info("%s", at_the_end(self._rows))
        if self.stopped_by is not None:
            folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
            logger.warning(
                "Stopped at step %d, because `stop_on` names %s. Resume with: --resume_from_checkpoint %s",
                state.global_step,
                self.stopped_by.detector,
                folder,
            )


def _of_training(row: Mapping[str, Any] | None) -> bool:
    """Whether a logged row is of training steps, not of an evaluation or of the end."""
    return bool(row) and "loss" in (row or {})


def stopped_by(trainer: Trainer) -> Finding | None:
    """The finding that ended the training of a trainer, or None."""
    watching = [callback for callback in trainer.callback_handler.callbacks if isinstance(callback, HealthCallback)]
    return next((callback.stopped_by for callback in watching if callback.stopped_by is not None), None)
