"""The command line of a recipe: dataclass defaults < preset < YAML file < flag, and errors in one sentence."""

import difflib
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import yaml
from trl import TrlParser

from grpo_ext.config import GRPOExtConfig
from grpo_ext.flags import flag
from grpo_ext.launch import run
from grpo_ext.presets import PRESETS

__all__ = ["layered", "parse", "read_yaml", "run"]

Recipe = TypeVar("Recipe")


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
    path = flag(argv, "config")
    from_file = read_yaml(path) if path is not None else {}
    if "env" in from_file:
        raise ValueError(f"`env` in {path!r} is not supported; set environment variables in the shell.")
    known = {spec.name for cls in (recipe, GRPOExtConfig) for spec in fields(cls) if spec.init}
    for key in from_file:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "--help lists the fields."
            raise ValueError(f"`{key}` in {path!r} is no field of this recipe; {hint}")
    preset = flag(argv, "preset") or from_file.get("preset", defaults.get("preset"))
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
