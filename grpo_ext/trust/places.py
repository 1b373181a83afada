"""Names that were read from a file and are joined to a folder."""

import os
from pathlib import Path


def inside(folder: str | os.PathLike[str], name: str, source: str) -> Path:
    """A place below a folder.

    Args:
        folder: the folder.
        name: relative path that something else gives, such as a checkpoint.
        source: what gives it.

    Returns:
        The folder with the name behind it.

    Raises:
        ValueError: the place is elsewhere: an absolute path, one with "..", or a link that leads out.
    """
    place = Path(folder) / name
    if "\0" in name or not place.resolve().is_relative_to(Path(folder).resolve()):
        raise ValueError(f"{source} names {name!r}, which is outside of {folder}; it was made or changed elsewhere.")
    return place
