"""A reward for completions that must be JSON of a given shape."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grpo_ext.rewards.rows import Completion, completion_text

# Name of a type in a schema -> the Python types that JSON of this type is read as.
TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
    "array": (list,),
    "object": (dict,),
}

Schema = Mapping[str, Any]
_FENCE = re.compile(r"\s*```(?:json)?[ \t]*\n(.*?)\n[ \t]*```\s*", re.DOTALL)
MAX_CHARACTERS = 1_000_000
_REFUSED = object()


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError("a key occurs twice")
    return dict(pairs)


def _parse(text: str, fence: bool) -> Any:
    """Read JSON; `_REFUSED` for what is not. NaN, Infinity and repeated keys are refused."""
    if fence and (block := _FENCE.fullmatch(text)):
        text = block[1]
    if len(text) > MAX_CHARACTERS:
        return _REFUSED
    try:
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError):  # an integer of more digits than Python reads is a ValueError as well
        return _REFUSED


def _is_of_type(value: Any, names: str | Sequence[str]) -> bool:
    for name in [names] if isinstance(names, str) else names:
        if isinstance(value, bool) and name != "boolean":
            continue
        if isinstance(value, TYPES[name]) and not (isinstance(value, float) and not math.isfinite(value)):
            return True
    return False


def check_schema(schema: Any, where: str = "schema") -> None:
    """Refuse what is not a schema: a name of `TYPES`, a list of names, or a mapping of keys to schemas.

    Raises:
        ValueError: With the place and what was found.
    """
    if isinstance(schema, Mapping):
        for key, inner in schema.items():
            check_schema(inner, f"{where}[{key!r}]")
        return
    names = [schema] if isinstance(schema, str) else schema
    if (
        not isinstance(names, Sequence)
        or not names
        or not all(isinstance(name, str) and name in TYPES for name in names)
    ):
        raise ValueError(
            f"{where} is {schema!r}; it must be one of {', '.join(TYPES)}, a list of these, or a mapping to these."
        )


def _credit(value: Any, schema: Any) -> tuple[int, int]:
    """Count the leaves of a schema that a value matches, and all leaves."""
    if not isinstance(schema, Mapping):
        return int(_is_of_type(value, schema)), 1
    if not schema:
        return int(isinstance(value, dict)), 1
    inner = value if isinstance(value, dict) else {}
    counts = [_credit(inner[key], part) if key in inner else _credit(_REFUSED, part) for key, part in schema.items()]
    return sum(count[0] for count in counts), sum(count[1] for count in counts)


def _has_extra(value: Any, schema: Any) -> bool:
    if not isinstance(schema, Mapping) or not isinstance(value, dict):
        return False
    return bool(set(value) - set(schema)) or any(_has_extra(value[key], schema[key]) for key in schema if key in value)


@dataclass(frozen=True)
class JsonReward:
    """The function that `json_reward` returns; a class, so that it can be pickled."""

    schema: Schema | str
    partial: bool
    extra_keys: bool
    fence: bool
    __name__ = "json"  # TRL logs the reward under it

    def __call__(self, completions: Sequence[Completion], **kwargs: Any) -> list[float]:
        """Return the score, from 0 to 1, of each of the B completions."""
        return [self._score(completion_text(completion)) for completion in completions]

    def _score(self, text: str) -> float:
        value = _parse(text, self.fence)
        if value is _REFUSED or (not self.extra_keys and _has_extra(value, self.schema)):
            return 0.0
        met, wanted = _credit(value, self.schema)
        return met / wanted if self.partial else float(met == wanted)


def json_reward(
    schema: Schema | str = "object", partial: bool = False, extra_keys: bool = True, fence: bool = True
) -> JsonReward:
    """Make a reward for completions that are JSON with the required keys and types, and nothing else.

    Args:
        schema: A type name (`string integer number boolean null array object`), or a mapping of required keys to
            schemas, in which a list of names stands for any of them: `{"city": "string", "inhabitants": ["integer",
            "null"], "place": {"lat": "number"}}`. `true` is not an integer, and 1.0 is a number only.
        partial: Whether text that parses scores the share of required leaves that are there and of the right type, or
            else 1 only for all of them.
        extra_keys: Whether keys that the schema does not name are allowed.
        fence: Whether a Markdown fence around all of the JSON is allowed.

    Returns:
        A reward function named "json" with scores from 0 to 1.

    Raises:
        ValueError: `schema` is malformed.
    """
    check_schema(schema)
    return JsonReward(schema, partial, extra_keys, fence)
