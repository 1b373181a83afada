"""A YAML file of fields, read so that no file can hang a run, be half understood or end in a traceback."""

from pathlib import Path
from typing import Any

import yaml

# Bytes of a file, and values when what its aliases stand for is counted each time; a recipe has a few dozen
LARGEST, VALUES = 200_000, 10_000


class _Fields(yaml.SafeLoader):
    """Refuses a key that stands twice, of which PyYAML would drop the first, and merges that double and double."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        for place, key in enumerate(keys):
            if key in keys[:place]:
                line = next(k.start_mark.line for k, _ in reversed(node.value) if k.value == key) + 1
                raise yaml.YAMLError(f"`{key}` stands twice, the second time in line {line}")
        return node

    def flatten_mapping(self, node: Any) -> None:
        super().flatten_mapping(node)
        if len(node.value) > VALUES:
            raise yaml.YAMLError(f"its merges come to more than {VALUES:,} values")


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file of fields.

    Args:
        path: the file.

    Returns:
        Its mapping.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not a mapping, not YAML, or larger than any file of fields.
    """
    name = f"`--config` {str(path)!r}"
    try:
        with Path(path).open("rb") as file:
            raw = file.read(LARGEST + 1)
    except (OSError, ValueError) as error:  # the second for a name with a null character
        raise OSError(f"{name} cannot be read ({getattr(error, 'strerror', error)}); name a YAML file.") from error
    if len(raw) > LARGEST:
        raise ValueError(f"{name} has more than {LARGEST:,} bytes; it must be a file of fields, not of data.")
    try:
        # What PyYAML raises for numbers and dates that mean nothing is a ValueError
        content = yaml.load(raw.decode("utf-8-sig"), _Fields)
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not text in UTF-8 (byte {error.start}); save it as UTF-8.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{name} is not YAML of fields: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict):
        found = "is empty" if content is None else f"holds a {type(content).__name__}"
        raise ValueError(f"{name} {found}; it must map fields to values.")
    if _size(content, {}) > VALUES:
        raise ValueError(f"{name} comes to more than {VALUES:,} values, its aliases written out; write fewer.")
    return content


def _size(value: Any, known: dict[int, float]) -> float:
    """Number of values with aliases written out; infinite for one that holds itself."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        known[id(value)] = float("inf")
        parts = [*value, *value.values()] if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(value)]
