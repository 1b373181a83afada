"""Fixtures and settings that every room's tests may use."""

import gc
import os
from pathlib import Path

import pytest
from hypothesis import settings

# The time of a single example says nothing on a busy machine; tests that guard against hanging measure it themselves.
settings.register_profile("grpo-ext", deadline=None)
settings.load_profile("grpo-ext")

DATA_BESIDE = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session", autouse=True)
def _collect_less() -> None:
    # Four fifths of a tiny run's time is gc.collect() among imported modules, which accelerate asks for at its end
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data sets: GRPO_EXT_DATA, or else ../shared/data beside the repository."""
    folder = Path(os.environ.get("GRPO_EXT_DATA") or DATA_BESIDE)
    if not folder.is_dir():
        pytest.fail(f"these tests read real data: set GRPO_EXT_DATA to its folder (looked in {folder}).")
    return folder
