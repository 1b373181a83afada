"""Single values: a field with choices, a name among them, a smallest number, a folder that can be written to."""

import os
import tempfile
from collections.abc import Collection, Iterable
from dataclasses import field
from pathlib import Path
from typing import Any


def choice(default: str | None, choices: Iterable[str], text: str) -> Any:
    """A dataclass field whose value must be one of several names.

    Args:
        default: value when unset; None makes the field optional.
        choices: allowed names.
        text: what the field means, for the help.

    Returns:
        The field.
    """
    names = list(choices)
    return field(default=default, metadata={"help": f"{text} One of: {', '.join(names)}.", "choices": names})


def one_of(name: str, value: Any, choices: Collection[Any]) -> None:
    """Refuse a value that is no choice.

    Args:
        name: of the field.
        value: what it holds.
        choices: what it may hold.

    Raises:
        ValueError: in one sentence.
    """
    if value not in choices:
        raise ValueError(f"`{name}` is {value!r}; it must be one of: {', '.join(map(str, choices))}.")


def at_least(name: str, value: float, least: float = 1) -> None:
    """Refuse a number that is too small.

    Args:
        name: of the field.
        value: what it holds.
        least: what it must hold at least.

    Raises:
        ValueError: in one sentence.
    """
    if value < least:
        raise ValueError(f"`{name}` is {value}; it must be at least {least}.")


def check_output_dir(output_dir: str | Path) -> None:
    """Make the output folder and write to it once.

    Args:
        output_dir: folder of a run.

    Raises:
        OSError: the folder cannot be made or written to.
    """
    if not is_path(str(output_dir)):
        raise OSError(f"`output_dir` is {str(output_dir)!r}; it must be the name of a folder.")
    try:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output_dir):
            pass
    except OSError as error:
        raise OSError(
            f"`output_dir` {str(output_dir)!r} cannot be written to ({error.strerror}); name a folder that can."
        ) from error


def is_path(text: str) -> bool:
    """Whether the operating system could have a file of a name.

    Args:
        text: the name.
    """
    try:
        return bool(text.strip()) and b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False
