"""The saved tiny policy that the trainer's tests start from."""

from pathlib import Path

import pytest
from tiny_runs import save_policy


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_policy(tmp_path_factory.mktemp("tiny"))
