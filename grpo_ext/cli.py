"""The command line of a recipe: dataclass defaults < preset < YAML file < flag, and errors in one sentence."""

import difflib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import yaml
from tqdm.auto import tqdm
from trl import TrlParser

from grpo_ext.config import GRPOExtConfig
from grpo_ext.presets import PRESETS

Recipe = TypeVar("Recipe")


def _flag(argv: Sequence[str], name: str) -> str | None:
    """Value of `--name VALUE` or `--name=VALUE`, the last one given."""
    value = None
    for index, word in enumerate(argv):
        if word == f"--{name}" and index + 1 < len(argv):
            value = argv[index + 1]
        elif word.startswith(f"--{name}="):
            value = word.partition("=")[2]
    return value


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file of fields.

    Args:
        path: the file.

    Returns:
        Its mapping.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not a mapping, or not YAML.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise OSError(f"`--config` {str(path)!r} cannot be read ({error.strerror}); name a YAML file.") from error
    except yaml.YAMLError as error:
        raise ValueError(f"`--config` {str(path)!r} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ValueError(f"`--config` {str(path)!r} holds a {type(content).__name__}; it must map fields to values.")
    return content


def layered(recipe: type[Any], argv: Sequence[str], defaults: dict[str, Any]) -> tuple[TrlParser, list[str]]:
    """A parser whose defaults are the layers below the flags, and the flags.

    Args:
        recipe: dataclass of the recipe; it must have a field `preset`.
        argv: the words after the command.
        defaults: values that stand below a preset.

    Returns:
        The parser, and the words without `--config`.

    Raises:
        OSError: the YAML file cannot be read.
        ValueError: an unknown preset or key.
    """
    argv = list(argv)
    path = _flag(argv, "config")
    from_file = read_yaml(path) if path is not None else {}
    if "env" in from_file:
        raise ValueError(f"`env` in {path!r} is not supported; set environment variables in the shell.")
    known = {spec.name for cls in (recipe, GRPOExtConfig) for spec in fields(cls) if spec.init}
    for key in from_file:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "--help lists the fields."
            raise ValueError(f"`{key}` in {path!r} is no field of this recipe; {hint}")
    preset = _flag(argv, "preset") or from_file.get("preset")
    if preset is not None and preset not in PRESETS:
        raise ValueError(f"`preset` is {preset!r}; it must be one of: {', '.join(PRESETS)}.")

    parser = TrlParser((recipe, GRPOExtConfig), prog=None)
    layers = {**defaults, **PRESETS.get(preset or "", {}), **from_file}
    parser.set_defaults_with_config(**layers)
    rest = [word for word in argv if not word.startswith("--config=")]
    while "--config" in rest:
        at = rest.index("--config")
        del rest[at : at + 2]
    return parser, rest


def parse(recipe: type[Recipe], argv: Sequence[str], defaults: dict[str, Any]) -> tuple[Recipe, GRPOExtConfig]:
    """Read a command line into the recipe's arguments and the trainer's config.

    Args:
        recipe: dataclass of the recipe; it must have a field `preset`.
        argv: the words after the command.
        defaults: values that stand below a preset.

    Returns:
        The recipe's arguments and the config.

    Raises:
        OSError: the YAML file cannot be read.
        ValueError: an unknown preset or key, or a value that its field does not take.
    """
    parser, rest = layered(recipe, argv, defaults)
    arguments, config = parser.parse_args_into_dataclasses(args=rest)
    return arguments, config


class _AboveTheBar(logging.Handler):
    """Prints a line without tearing a progress bar that is on the screen."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)


def run(main: Callable[[Sequence[str]], int]) -> None:
    """Run a recipe's main and end the process with its code; an expected error becomes one sentence.

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
        sys.exit(main(sys.argv[1:]))
    try:
        code = main(sys.argv[1:])
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    sys.exit(code)
