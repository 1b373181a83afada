"""Faults that end a run: in a sentence, on all processes at once, after the last complete step has been saved."""

import os
from types import TracebackType

# Exit code of a recipe that a fault has stopped: "internal software error" of sysexits.h
FAULTED = getattr(os, "EX_SOFTWARE", 70)


class RunStopped(RuntimeError):
    """A fault of a run that training must not go on from: an update would be wrong, or nothing would be learned.

    The message is one sentence with what was found, where, and what to do. Raised inside `GRPOExtTrainer.train()`, it
    reaches the caller after a checkpoint of the last complete optimizer step has been saved, with a note that names
    the checkpoint. A recipe prints the sentence and the note in place of a traceback, and exits with `FAULTED`.

    With several processes it must be raised on all of them at the same point, because a checkpoint is saved by all
    together: from numbers that all have, or through `grpo_ext.trainer.guarded.stop_together`.
    """


def first_line(error: BaseException) -> str:
    """The first line of an error's message without the full stop at its end, or its class where there is none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


class Caught:
    """A context manager that keeps the exception which ends its block, and lets the lines behind it go on.

    It is for code of a user, which may raise anything. Ctrl-C is not kept.

    Attributes:
        error: the exception, or None.
    """

    error: BaseException | None = None

    def __enter__(self) -> "Caught":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        # A function that calls sys.exit() would otherwise end the run as if it were done
        self.error = error if isinstance(error, Exception | SystemExit) else None
        return self.error is not None
