"""All processes of a run see what the main process writes in `output_dir`."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from grpo_ext.trainer import saving


def accelerator(main: bool, processes: int = 2) -> Any:
    return SimpleNamespace(is_main_process=main, num_processes=processes)


def test_the_main_process_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "broadcast_object_list", lambda mark, from_process: None)
    monkeypatch.setattr(saving, "gather_object", lambda seen: [*seen, True])
    saving.check_shared(tmp_path / "run", accelerator(main=True))
    assert not list((tmp_path / "run").iterdir())
    saving.check_shared(tmp_path / "alone", accelerator(main=True, processes=1))
    assert not (tmp_path / "alone").exists()


@pytest.mark.parametrize("seen", [False, True])
def test_another_process_looks_for_the_same_file(seen: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if seen:
        (tmp_path / "mark").touch()

    def sent(mark: list[Any], from_process: int) -> None:
        # By the main process, which may have another folder under that path
        mark[0] = "elsewhere/mark"

    monkeypatch.setattr(saving, "broadcast_object_list", sent)
    monkeypatch.setattr(saving, "gather_object", lambda seen: [True, *seen])
    monkeypatch.setattr(saving, "LATE", 0.01)
    if seen:
        saving.check_shared(tmp_path, accelerator(main=False))
        return
    with pytest.raises(ValueError, match=r"in which the processes 1 do not see .* a folder that all machines share"):
        saving.check_shared(tmp_path, accelerator(main=False))


def test_a_folder_that_cannot_be_written_stops_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(saving, "broadcast_object_list", lambda mark, from_process: None)
    monkeypatch.setattr(saving, "gather_object", lambda seen: [*seen, *seen])
    with pytest.raises(ValueError, match="in which the processes 0, 1 do not see"):
        saving.check_shared(tmp_path / "file", accelerator(main=True))
    assert "Nothing can be written in" in caplog.text
