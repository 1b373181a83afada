"""A tiny model on disk, and the mark that a stranger's code would leave."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from grpo_ext.models import tiny_policy


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "tiny"
    for part in tiny_policy(seed=0):
        part.save_pretrained(folder)
    return folder


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[Path]:
    """A place where nothing may be when the test is over."""
    place = tmp_path / "mark"
    yield place
    assert not place.exists()
