"""Checkpoints made under a temporary name: a folder `checkpoint-N` is whole, and older ones are kept until it is."""

import logging
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from safetensors import SafetensorError
from transformers import Trainer

from grpo_ext.callbacks import InterruptCallback
from grpo_ext.checkpoints import (
    TRAINER_STATE,
    WORKING,
    checkpoints,
    choose,
    cut_short,
    estimated,
    free,
    held,
    publish,
    recover,
    rotate,
    size,
    why_unwritten,
    write_manifest,
)
from grpo_ext.faults import RunStopped
from grpo_ext.trainer.faults import StoppableTrainer

logger = logging.getLogger("grpo_ext")

# Of a trainer whose config has no `max_failed_saves`
FAILED_SAVES = 2
# Seconds until what one machine has written is seen on another; a network's file system may take its time
LATE = 60.0


def check_shared(folder: Path, accelerator: Accelerator) -> None:
    """See that all processes see what the main process writes; all of them call it.

    Args:
        folder: `output_dir`.
        accelerator: of the run.

    Raises:
        ValueError: a process does not see it, on all processes.
    """
    if accelerator.num_processes == 1:
        return
    mark: list[Any] = [None]
    if accelerator.is_main_process:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor, mark[0] = tempfile.mkstemp(prefix=".seen-by-all-", dir=folder)
            os.close(descriptor)
        except OSError as error:
            # The others wait
            logger.warning("Nothing can be written in %s: %s", folder, error)
    broadcast_object_list(mark, from_process=0)
    name = None if mark[0] is None else Path(mark[0]).name
    until = time.monotonic() + LATE
    while not (seen := name is not None and (folder / name).is_file()) and name and time.monotonic() < until:
        time.sleep(0.5)
    everyone = gather_object([seen])
    if accelerator.is_main_process and name is not None:
        (folder / name).unlink()
    if not all(everyone):
        blind = ", ".join(str(number) for number, saw in enumerate(everyone) if not saw)
        raise ValueError(
            f"`output_dir` is {str(folder)!r}, in which the processes {blind} do not see what the main process wrote; "
            "it must be a folder that all machines share, under the same path."
        )


class WholeCheckpoints(Trainer):
    """Lets the trainer beside it write a checkpoint in `<output_dir>/.saving`, and names it when it is whole.

    One that cannot be written, for want of room on the disk, is left out, and training goes on to the next.

    `train` takes "last" for `resume_from_checkpoint`, and leaves a torn checkpoint for the one before. SIGTERM and the
    first Ctrl-C finish a step and save.

    Attributes:
        interrupt: knows whether the run was stopped so.
        hints_at_resume: whether a run that was stopped so names the flag with which it goes on.

    Raises:
        RunStopped: the last checkpoint cannot be written, or more than `max_failed_saves` in a row.
    """

    hints_at_resume = True
    _is_saving = False
    _failed_saves = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.interrupt = InterruptCallback(self.hints_at_resume)
        self.add_callback(self.interrupt)

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        check_shared(Path(str(self.args.output_dir)), self.accelerator)
        chosen = choose(resume_from_checkpoint, str(self.args.output_dir))
        # Also holds the first save back until all have chosen
        names = {"none" if path is None else path.name for path in gather_object([chosen])}
        if len(names) > 1:
            raise ValueError(
                f"`resume_from_checkpoint`: processes find different checkpoints ({', '.join(sorted(names))}); "
                "`output_dir` must be a folder that all machines share."
            )
        try:
            return super().train(None if chosen is None else str(chosen), *args, **kwargs)
        finally:
            self.interrupt.restore()

    def _get_output_dir(self, trial: Any) -> str:
        folder = super()._get_output_dir(trial)
        return str(Path(folder) / WORKING) if self._is_saving else folder

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        run = Path(self._get_output_dir(trial))
        final = run / f"checkpoint-{self.state.global_step}"
        working = run / WORKING / final.name
        if self.args.should_save:
            recover(run)
        self.accelerator.wait_for_everyone()
        best, write = self.state.best_model_checkpoint, super()._save_checkpoint
        self._is_saving = True
        try:
            problem = self._problem(lambda: write(model, trial))
            if problem is None:
                problem = self._problem(lambda: self._finish(working, final))
        finally:
            self._is_saving = False
            if self.args.should_save:
                # After an error or Ctrl-C too
                recover(run)
        if problem is not None:
            self.state.best_model_checkpoint = best
            self._do_without(final, problem)
            return
        self._failed_saves = 0
        if self.args.should_save:
            rotate(run, self.args.save_total_limit, self.state.best_model_checkpoint)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            super()._push_from_checkpoint(str(final))

    def _finish(self, working: Path, final: Path) -> None:
        """What makes a checkpoint whole when everything is in it."""
        if not self.args.should_save:
            return
        self._name_best(working, final)
        problem = cut_short(working)
        if problem is not None:
            raise OSError(problem)
        write_manifest(working)
        publish(working, final)

    def _problem(self, write: Callable[[], None]) -> str | None:
        """Why a process could not write its files, or None; all processes get the same answer."""
        problem = None
        try:
            write()
        except (OSError, RuntimeError, SafetensorError) as error:
            problem = why_unwritten(error)
            if problem is None:
                raise
        return next((found for found in gather_object([problem]) if found is not None), None)

    def _do_without(self, folder: Path, problem: str) -> None:
        self._failed_saves += 1
        limit = getattr(self.args, "max_failed_saves", FAILED_SAVES)
        made = checkpoints(folder.parent)
        model = self.accelerator.unwrap_model(self.model)
        needed = held(made[0]) if made else estimated(model, optimizer=not self.args.save_only_model)
        sentence = (
            f"{folder.name} could not be written ({problem}): {size(free(folder.parent))} are free in "
            f"{folder.parent}, about {size(needed)} are needed"
        )
        room = "make room, or lower `save_total_limit`"
        # After a fault, when a step before it is saved, there is no next time either
        ends = self.control.should_training_stop or self.state.global_step >= self.state.max_steps
        if ends or getattr(self, "_gives_kept", False):
            raise RunStopped(f"{sentence}, and this is the last one; {room}.")
        if self._failed_saves > limit:
            raise RunStopped(
                f"{sentence}, {self._failed_saves} times in a row (`max_failed_saves` is {limit}); {room}."
            )
        logger.warning(
            "%s, so training goes on without it until the next save, %d in a row of at most %d (`max_failed_saves`); "
            "%s.",
            sentence,
            self._failed_saves,
            limit,
            room,
        )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # An upload goes on in the background, from the folder under its final name
        if not self._is_saving:
            super()._push_from_checkpoint(checkpoint_folder)

    def _name_best(self, working: Path, final: Path) -> None:
        """transformers looks for the best checkpoint beside the one it writes."""
        if self.state.best_model_checkpoint == str(working):
            self.state.best_model_checkpoint = str(final)
        elif self.state.best_global_step:
            best = final.with_name(f"checkpoint-{self.state.best_global_step}")
            if best.is_dir():
                self.state.best_model_checkpoint = str(best)
        self.state.save_to_json(str(working / TRAINER_STATE))


class SavingTrainer(WholeCheckpoints, StoppableTrainer):
    """A GRPO run with whole checkpoints."""
