"""The files that a command line names, by what they hold: the same words mean another run once a file was edited."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

from grpo_ext.files import digest_of_file
from grpo_ext.flags import flag
from grpo_ext.yaml_file import read_yaml


def named_files(argv: Sequence[str]) -> dict[str, str]:
    """Digest of each file that a word of a command line, or a value of its `--config`, names.

    Args:
        argv: the words after the command.

    Returns:
        Name as it is written to digest.

    Raises:
        OSError: a file cannot be read.
        ValueError: the config is no YAML of fields.
    """
    config = flag(argv, "config")
    words = [word.partition("=")[2] if word.startswith("--") else word for word in argv]
    found = [*words, *_texts(read_yaml(config) if config is not None else None)]
    return {name: digest_of_file(name) for name in sorted(set(found)) if os.path.isfile(name)}


def _texts(value: Any) -> Iterator[str]:
    """The texts in a YAML value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)
