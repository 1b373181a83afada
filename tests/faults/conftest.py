"""The tiny runs of the trainer's tests, for faults in them."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "trainer"))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Found through the line above
    from tiny_runs import save_policy

    return save_policy(tmp_path_factory.mktemp("tiny"))
