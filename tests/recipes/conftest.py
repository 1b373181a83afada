"""The tiny policy on disk, which a recipe loads by its folder, and the words of a tiny run."""

from pathlib import Path

import pytest

from grpo_ext.models import tiny_policy


@pytest.fixture
def tiny_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny"
    for part in tiny_policy(seed=0):
        part.save_pretrained(folder)
    return folder
