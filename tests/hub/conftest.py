"""A hub on the loopback address that the hub's own client talks to, and a finished run to upload."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from finished_runs import HOST, USER, finished_run
from huggingface_hub import constants

from fake_hub import FakeHub, fake_hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """The client pointed at a stand-in, with nobody logged in, on the machine of a user with a name."""
    home = tmp_path / "home" / USER
    home.mkdir(parents=True)
    with fake_hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "no token"))
        monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(home / "no tokens"))
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
            monkeypatch.delenv(name, raising=False)
        for name in ("LOGNAME", "USER"):
            monkeypatch.setenv(name, USER)
        monkeypatch.setenv("HOME", str(home))
        monkeypatch.setattr("socket.gethostname", lambda: HOST)
        huggingface_hub.close_session()
        yield server
    huggingface_hub.close_session()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that were waited for, without waiting."""
    seconds: list[float] = []
    monkeypatch.setattr(time, "sleep", seconds.append)
    return seconds


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from grpo_ext.models import tiny_policy

    folder = tmp_path_factory.mktemp("bases") / "tiny-base"
    for part in tiny_policy(seed=3):
        part.save_pretrained(folder)
    return folder


@pytest.fixture
def run(base_folder: Path, tmp_path: Path) -> Path:
    return finished_run(tmp_path / "runs" / "first-try", base_folder)


@pytest.fixture(scope="session")
def prepared_run(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from grpo_ext.hub.prepare import prepare
    from grpo_ext.hub.run import read_run

    folder = finished_run(tmp_path_factory.mktemp("prepared") / "first-try", base_folder)
    prepare(read_run(folder), folder.name)
    return folder


@pytest.fixture
def ready(prepared_run: Path, tmp_path: Path) -> Path:
    """A run whose `to_push/` is prepared, as a failed upload leaves it."""
    return shutil.copytree(prepared_run, tmp_path / "runs" / prepared_run.name)
