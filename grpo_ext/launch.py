"""How a recipe starts: the back end first, then TRL and everything that builds on it.

Unsloth rewrites TRL's classes when it is imported, so it must come before anything that imports TRL or transformers.
A recipe's module therefore imports nothing heavy, and neither does this one.
"""

import logging
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

from grpo_ext.backends import import_backend, named_backend
from grpo_ext.faults import FAULTED, RunStopped
from grpo_ext.visible import visible

# Named and not imported: it pulls in TRL
GRPO = "grpo_ext.recipes.grpo"


def prepare(argv: Sequence[str]) -> None:
    """Import the back end that a command line or its YAML file names, before anything imports TRL.

    Args:
        argv: the words after the command.

    Raises:
        OSError: the back end cannot be imported.
        ValueError: there is no such back end.
    """
    try:
        import_backend(named_backend(argv))
    except ImportError as error:
        raise OSError(str(error)) from error


class _AboveTheBar(logging.Handler):
    """Prints a line without tearing a progress bar that is on the screen."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm.auto import tqdm

        tqdm.write(visible(self.format(record)), file=sys.stdout)


def run(main: Callable[[Sequence[str]], int]) -> None:
    """Run a recipe's main and end the process with its code; an expected error becomes one sentence.

    A fault that has stopped a run gives the code `FAULTED`, 70, other errors give 2.

    `GRPO_EXT_DEBUG=1` shows the traceback instead.

    Args:
        main: takes the words after the command, returns an exit code.
    """
    own = logging.getLogger("grpo_ext")
    own.setLevel(logging.INFO)
    own.addHandler(_AboveTheBar())
    # Libraries warn each other about names that no user of a recipe has written
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|trl|peft")
    if os.environ.get("GRPO_EXT_DEBUG") == "1":
        code = main(sys.argv[1:])
        leave_process_group()
        sys.exit(code)
    try:
        code = main(sys.argv[1:])
    # An option may need a package that is not installed
    except (ValueError, OSError, ImportError, RunStopped) as error:
        # A message may repeat what a file or a data set holds; a note says what was saved
        for line in (f"error: {error}", *getattr(error, "__notes__", ())):
            print(visible(line), file=sys.stderr)
        if not isinstance(error, RunStopped):
            # It may be of this process alone, and the others wait in the group
            sys.exit(2)
        code = FAULTED
    leave_process_group()
    sys.exit(code)


def leave_process_group() -> None:
    """End torch.distributed's process group, where there is one, before the interpreter ends.

    A thread of the group that still lets go of a tensor asks for the interpreter's lock. When the interpreter is gone,
    the answer is an abort: a run that is finished and saved would end with the code of a crash.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def launch(argv: Sequence[str], recipe: str, defaults: Mapping[str, Any], **options: Any) -> int:
    """Import the back end that is asked for, then the shared GRPO run, and run it.

    Args:
        argv: the words after the command.
        recipe: name of the face, as in `python -m grpo_ext.recipes.NAME`.
        defaults: its values, below the preset, the YAML file and the flags.
        options: handed to the run, see `grpo_ext.recipes.grpo.main`.

    Returns:
        Exit code.

    Raises:
        OSError: the back end cannot be imported, or what the run raises.
        ValueError: there is no such back end, or what the run raises.
    """
    prepare(argv)
    return import_module(GRPO).main(argv, recipe, defaults, **options)
