"""The command line of a recipe: dataclass defaults < preset < YAML file < flag, and errors in one sentence."""

import difflib
from collections.abc import Collection, Sequence
from dataclasses import fields
from typing import Any, NoReturn, TypeVar, get_origin, get_type_hints

from trl import TrlParser

from grpo_ext.checks import check_numbers, check_types, members, typed
from grpo_ext.config import GRPOExtConfig
from grpo_ext.flags import flag
from grpo_ext.presets import PRESETS
from grpo_ext.yaml_file import read_yaml

Recipe = TypeVar("Recipe")


class Parser(TrlParser):
    """TRL's parser, whose errors are a sentence in place of all flags, and which says what a wrong flag may mean."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; --help describes the flags.")

    def read(self, words: Sequence[str]) -> tuple[Any, ...]:
        """The dataclasses from the words after the command.

        Args:
            words: without `--config`.

        Raises:
            ValueError: a word is no flag, or a value is not what its field takes.
        """
        *found, unknown = self.parse_args_into_dataclasses(args=list(words), return_remaining_strings=True)
        if unknown:
            raise ValueError(unknown_flag(unknown[0], self.names))
        for instance in found:
            check_types(instance)
            check_numbers(instance)
        return tuple(found)

    @property
    def names(self) -> list[str]:
        """Names of the fields."""
        return [spec.name for cls in self.dataclass_types for spec in fields(cls) if spec.init]


def unknown_flag(word: str, known: Collection[str], whose: str = "this recipe") -> str:
    """The sentence about a word that is no flag.

    Args:
        word: of a command line.
        known: names of fields.
        whose: flags they are.
    """
    near = difflib.get_close_matches(word.lstrip("-").partition("=")[0], known, n=1)
    hint = f"did you mean --{near[0]}?" if near else "--help lists the flags."
    return f"`{word}` is no flag of {whose}; {hint}"


def layered(
    recipe: type[Any], argv: Sequence[str], defaults: dict[str, Any], *others: type[Any]
) -> tuple[Parser, list[str]]:
    """A parser whose defaults are the layers below the flags, and the flags.

    Args:
        recipe: dataclass of the recipe.
        argv: the words after the command.
        defaults: values that stand below a preset.
        others: further dataclasses, such as the trainer's config, to which presets belong.

    Returns:
        The parser, and the words without `--config`.

    Raises:
        OSError: the YAML file cannot be read.
        ValueError: an unknown preset or key.
    """
    argv = list(argv)
    path = flag(argv, "config")
    if argv and argv[-1] == "--config":
        raise ValueError("`--config` has no value; name a YAML file after it.")
    from_file = read_yaml(path) if path is not None else {}
    if "env" in from_file:
        raise ValueError(f"`env` in {path!r} is not supported; set environment variables in the shell.")
    known: dict[str, Any] = {}
    for cls in (recipe, *others):
        hints = get_type_hints(cls)
        known |= {spec.name: hints[spec.name] for spec in fields(cls) if spec.init}
    for key in from_file:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "--help lists the fields."
            raise ValueError(f"`{key}` in {path!r} is no field of this recipe; {hint}")
    from_file = {key: _read_as(known[key], key, value) for key, value in from_file.items()}
    preset = flag(argv, "preset") or from_file.get("preset", defaults.get("preset"))
    if preset is not None and preset not in PRESETS:
        raise ValueError(f"`preset` is {preset!r}; it must be one of: {', '.join(PRESETS)}.")

    parser = Parser((recipe, *others), prog=None, allow_abbrev=False)
    layers = {**defaults, **PRESETS.get(preset or "", {}), **from_file}
    parser.set_defaults_with_config(**layers)
    rest = [word for word in argv if not word.startswith("--config=")]
    while "--config" in rest:
        at = rest.index("--config")
        del rest[at : at + 2]
    return parser, rest


def _read_as(hint: Any, key: str, value: Any) -> Any:
    """A value of a YAML file, where text means what it means as a flag: it may be a number, or a list of one."""
    parts = {get_origin(part) or part for part in members(hint)}
    if isinstance(value, str) and {bool, int, float} & parts:
        return value
    if isinstance(value, str) and list in parts and str not in parts:
        value = [value]
    return typed(key, value, hint)


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
    parser, rest = layered(recipe, argv, defaults, GRPOExtConfig)
    arguments, config = parser.read(rest)
    return arguments, config


def parse_alone(recipe: type[Recipe], argv: Sequence[str]) -> Recipe:
    """Read the command line of a recipe that trains no policy.

    Args:
        recipe: dataclass of the recipe.
        argv: the words after the command.

    Returns:
        The recipe's arguments.

    Raises:
        OSError: the YAML file cannot be read.
        ValueError: an unknown key, or a value that its field does not take.
    """
    parser, rest = layered(recipe, argv, {})
    (arguments,) = parser.read(rest)
    return arguments
