"""Every field of a dataclass against its annotation, so that a wrong type is named before any code runs into it."""

import json
import math
import numbers
import os
import reprlib
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
from transformers.trainer_pt_utils import AcceleratorConfig

NONE: Any = types.NoneType
# What TRL and transformers take beyond their annotations: None as 0 or as a default, numbers as names, objects that
# they make themselves of a mapping.
BEYOND: dict[str, tuple[Any, ...]] = {
    "accelerator_config": (AcceleratorConfig,),
    "debug": (NONE,),
    "eval_delay": (NONE,),
    "fsdp": (bool, list),
    "include_for_metrics": (NONE,),
    "label_smoothing_factor": (NONE,),
    "project": (NONE, int, float),
    "resume_from_checkpoint": (bool,),
    "run_name": (int, float),
    "scale_rewards": (bool,),
    "top_k": (NONE,),
}
# None where true or false is asked for is false, and elsewhere a default, but not here
NOT_NONE = ("dataloader_drop_last", "num_generations", "use_cache")
# A mapping may be written as JSON text; these may also be the name of a JSON file
FROM_FILES = ("accelerator_config", "deepspeed", "fsdp_config")
# Infinity means no limit
UNLIMITED = (
    "delta",
    "epsilon",
    "epsilon_high",
    "max_grad_norm",
    "vllm_importance_sampling_clip_max",
    "vllm_request_timeout",
    "vllm_server_timeout",
)
LARGEST = float(np.finfo(np.float32).max)

_short = reprlib.Repr()
_short.maxlevel, _short.maxlist, _short.maxdict, _short.maxstring, _short.maxother = 2, 3, 3, 60, 60


def brief(value: Any) -> str:
    """A value in a few words, however large or deep it is.

    Args:
        value: anything.
    """
    # repr() refuses an integer of more than 4300 digits
    if isinstance(value, int) and abs(value) >= 2**64:
        return "an integer beyond 64 bits"
    return _short.repr(value)


def members(hint: Any) -> tuple[Any, ...]:
    """The types of a union, or the one type.

    Args:
        hint: an annotation.
    """
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def typed(name: str, value: Any, hint: Any) -> Any:
    """A value, if it is of an annotated type.

    Args:
        name: of the field.
        value: what it holds.
        hint: its type, or a union of types.

    Returns:
        The value; a whole number that was written with a point becomes an integer where only integers are taken.

    Raises:
        ValueError: it is of another type, not a number, or a number that float32 or 64 bits cannot hold.
    """
    parts = [*members(hint), *BEYOND.get(name, ())]
    if any(_is_names(part) for part in parts):
        # Annotated as the names or any text, of which only the names work
        parts.remove(str)
    if name in NOT_NONE:
        parts = [part for part in parts if part is not NONE]
    elif Any in parts or (bool in parts and value is None):
        return value
    if not any(_is(value, part) for part in parts):
        words = " or ".join(dict.fromkeys(_in_words(part) for part in parts if part is not NONE))
        unset = ", or unset" if NONE in parts else ""
        raise ValueError(f"`{name}` is {brief(value)}; it must be {words}{unset}.")
    if isinstance(value, str) and dict in {get_origin(part) or part for part in parts}:
        _check_json(name, value)
    if isinstance(value, Sequence) and list[float] in parts:
        return [_number(name, item, whole=False) for item in value]
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return value
    return _number(name, value, whole=float not in parts)


def check_types(instance: Any) -> None:
    """Check every field of a dataclass instance against its annotation, see `typed`.

    Args:
        instance: of a dataclass.

    Raises:
        ValueError: a field holds something else, in one sentence.
    """
    cls: Any = type(instance)
    hints = _hints(cls)
    for spec in fields(instance):
        value = getattr(instance, spec.name)
        found = typed(spec.name, value, hints[spec.name])
        if found is not value:
            setattr(instance, spec.name, found)


@cache
def _hints(cls: Any) -> dict[str, Any]:
    return get_type_hints(cls)


def _number(name: str, value: Any, whole: bool) -> Any:
    if isinstance(value, numbers.Integral):
        if not -(2**63) <= int(value) < 2**63:
            raise ValueError(f"`{name}` is {brief(value)}; it must fit into 64 bits.")
        return value
    if math.isnan(value) or (abs(value) > LARGEST and not (value == math.inf and name in UNLIMITED)):
        raise ValueError(f"`{name}` is {value}; it must be a finite number, of at most {LARGEST:.1e}.")
    return int(value) if whole else value


def _check_json(name: str, value: str) -> None:
    if value.startswith("{"):
        try:
            json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"`{name}` is {brief(value)}, which is not JSON: {error}.") from error
    elif not (name in FROM_FILES and Path(value).is_file()):
        file = " or the name of a JSON file" if name in FROM_FILES else ""
        raise ValueError(f'`{name}` is {brief(value)}; text must be a mapping in JSON, such as {{"key": 1}},{file}.')


def _is(value: Any, part: Any) -> bool:
    origin = get_origin(part) or part
    if origin is Literal:
        return any(value is choice or (type(value) is type(choice) and value == choice) for choice in get_args(part))
    if _is_names(origin):
        return isinstance(value, origin) or any(value == choice.value for choice in origin)
    if origin in KINDS:
        return KINDS[origin][0](value) and _holds(value, origin, get_args(part))
    return isinstance(value, origin)


def _is_names(part: Any) -> bool:
    return isinstance(part, type) and issubclass(part, Enum)


def _holds(value: Any, origin: type, inner: tuple[Any, ...]) -> bool:
    return origin is not list or not inner or inner[0] is Any or all(_is(item, inner[0]) for item in value)


def _in_words(part: Any) -> str:
    origin = get_origin(part) or part
    if origin is Literal:
        return " or ".join(map(repr, get_args(part)))
    if _is_names(origin):
        return f"one of: {', '.join(str(choice.value) for choice in origin)}"
    if origin is list and get_args(part):
        return f"a list of {_in_words(get_args(part)[0])}"
    return KINDS[origin][1] if origin in KINDS else f"a {origin.__name__}"


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool | np.bool_) or (isinstance(value, numbers.Real) and value in (0, 1))


def _is_whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral) or (isinstance(value, float) and value.is_integer())


# Type -> (whether a value is of it, how a message calls it)
KINDS: dict[Any, tuple[Callable[[Any], bool], str]] = {
    bool: (_is_bool, "true or false"),
    int: (_is_whole, "a whole number"),
    float: (lambda value: isinstance(value, numbers.Real), "a number"),
    str: (lambda value: isinstance(value, str | os.PathLike), "text"),
    list: (lambda value: isinstance(value, Sequence) and not isinstance(value, str | bytes), "a list"),
    dict: (
        lambda value: isinstance(value, Mapping) and all(isinstance(key, str) for key in value),
        "a mapping of names",
    ),
}
