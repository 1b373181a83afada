"""An interrupt that loses nothing."""

import os
import signal
import threading
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

# Exit code of a recipe that Ctrl-C has stopped
INTERRUPTED = 130
# Of one that SIGTERM has stopped, with its checkpoint saved: "temporary failure, try again" of sysexits.h
REQUEUE = getattr(os, "EX_TEMPFAIL", 75)


class Interrupted(RuntimeError):
    """The user, a scheduler or a finding stopped a training before its end; a checkpoint was saved.

    Attributes:
        code: exit code of the recipe.
    """

    def __init__(self, message: str, code: int = INTERRUPTED) -> None:
        super().__init__(message)
        self.code = code


class InterruptCallback(TrainerCallback):
    """The first Ctrl-C or SIGTERM finishes the running step, saves a checkpoint and stops; the second Ctrl-C at once.

    A scheduler sends SIGTERM some time before SIGKILL; it may do so several times. A training inside a step of another
    one leaves the signals to that one, which stops when its step is done.

    Args:
        hints: whether the flag with which the run goes on is printed at its end.

    Attributes:
        interrupted: whether the run was stopped in this way.
        terminated: whether it was by SIGTERM.
    """

    def __init__(self, hints: bool = True) -> None:
        self.hints = hints
        self.interrupted = False
        self.terminated = False
        self._pressed = False
        self._previous: dict[int, Any] = {}

    @property
    def exit_code(self) -> int:
        """0, 130 after Ctrl-C, or 75 after SIGTERM, on which a scheduler should start the command again."""
        return REQUEUE if self.terminated else INTERRUPTED if self.interrupted else 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # A trainer that was stopped may be asked to go on
        self.interrupted = self.terminated = self._pressed = False
        # Python delivers signals to the main thread alone
        if threading.current_thread() is threading.main_thread() and not _is_taken():
            handlers = {signal.SIGINT: self._handle, signal.SIGTERM: self._terminate}
            self._previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}

    def _handle(self, number: int, frame: Any) -> None:
        if self._pressed:
            raise KeyboardInterrupt
        self.interrupted = self._pressed = True
        print(
            "\nStopping after this step, a checkpoint will be saved; press Ctrl-C again to stop at once.", flush=True
        )

    def _terminate(self, number: int, frame: Any) -> None:
        self.interrupted = self.terminated = True

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if args.world_size > 1:
            # A process that stops alone leaves the others waiting for it
            everyone = gather_object([(self.interrupted, self.terminated)])
            self.interrupted, self.terminated = (any(flags) for flags in zip(*everyone, strict=True))
        if self.interrupted:
            control.should_save = True
            control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.restore()
        if self.interrupted and self.hints and state.is_world_process_zero:
            folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
            why = " by SIGTERM" if self.terminated else ""
            print(
                f"Stopped at step {state.global_step}{why}. Resume with: --resume_from_checkpoint {folder}", flush=True
            )

    def stopped(self, what: str, step: int) -> None:
        """Say that a training was stopped in this way, where it was.

        Args:
            what: beginning of the sentence.
            step: the last one.

        Raises:
            Interrupted: it was.
        """
        if self.interrupted:
            raise Interrupted(f"{what} was stopped at step {step}.", self.exit_code)

    def restore(self) -> None:
        """Give the signals back to whoever had them."""
        for number, previous in self._previous.items():
            signal.signal(number, previous)
        self._previous = {}


def _is_taken() -> bool:
    """Whether another training, which this one is a part of, listens to SIGTERM."""
    return isinstance(getattr(signal.getsignal(signal.SIGTERM), "__self__", None), InterruptCallback)
