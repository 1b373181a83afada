"""Files that a reader never sees half of, and digests that say whether one is still the same."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Write a text file under a temporary name and rename it.

    Args:
        path: the file.
        text: its new content.

    Raises:
        OSError: the disk is full, for example; the file is as it was.
    """
    # Of each process its own, since several may write
    temporary = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def digest(rows: Iterable[Any]) -> str:
    """Digest of values that JSON can hold, such as the rows of a data set.

    Args:
        rows: any number of them; their order counts, that of their keys does not.
    """
    found = hashlib.blake2b(digest_size=16)
    for row in rows:
        found.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
    return found.hexdigest()


def digest_of_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal digits, read in pieces.

    Args:
        path: the file.

    Raises:
        OSError: it cannot be read.
    """
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
