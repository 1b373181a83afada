"""The source that Unsloth generates goes to our cache folder, also from two processes at once."""

import json
from pathlib import Path

import pytest

from real_unsloth import ROOT, finish, start

pytestmark = pytest.mark.unsloth


def test_two_processes_share_a_folder_and_leave_the_working_directory_alone(tmp_path: Path) -> None:
    script, places = ROOT / "tests" / "backends" / "unsloth_generates.py", [tmp_path / "one", tmp_path / "two"]
    started = [start(place, str(script), GRPO_EXT_CACHE=str(tmp_path / "cache")) for place in places]
    seen = [
        json.loads(finish(process, place).strip().splitlines()[-1])
        for process, place in zip(started, places, strict=True)
    ]
    assert seen[0] == seen[1]
    assert seen[0]["trainer"] == "UnslothGRPOTrainer" and seen[0]["here"] == ["log"]
    folder = Path(seen[0]["folder"])
    assert Path(seen[0]["file"]).parent == folder and folder.parent == tmp_path / "cache" / "unsloth"
    assert len(list(folder.parent.iterdir())) == 1
