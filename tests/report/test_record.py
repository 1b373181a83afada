"""What a run writes down about itself."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from grpo_ext.report import changed_fields, hardware, versions, write_json


def test_hardware_says_what_a_reader_compares(tmp_path: Path) -> None:
    found = hardware()
    assert found["cpu"] and found["cores"] >= 1 and found["memory"] > 2**28
    assert all(gpu["name"] and gpu["memory"] > 0 for gpu in found["gpus"])
    write_json(tmp_path / "x.json", found)
    assert json.loads((tmp_path / "x.json").read_text()) == found


def test_writers_share_no_temporary_file_and_leave_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_json(tmp_path / "folder.json", {})
    assert [path.name for path in tmp_path.iterdir()] == ["folder.json"]
    seen: list[str] = []
    monkeypatch.setattr("grpo_ext.files.os.replace", lambda source, target: seen.append(source.name))
    for process in (1, 2):
        monkeypatch.setattr("grpo_ext.files.os.getpid", lambda process=process: process)
        write_json(tmp_path / "x.json", {})
    assert len(set(seen)) == 2


def test_versions_name_the_hosts() -> None:
    assert {"grpo-ext", "torch", "trl", "transformers"} <= set(versions())


@dataclass
class Config:
    beta: float = 0.0
    seed: int = 42
    names: list[str] = field(default_factory=lambda: ["a"])
    hub_token: str | None = None
    made: Any = None
    empty: list[str] | None = None
    derived: int = field(default=0, init=False)


def test_changed_fields_leave_out_defaults_tokens_and_objects() -> None:
    config = Config(beta=0.04, names=["b"], hub_token="secret", made=object(), empty=[])
    config.derived = 3
    assert changed_fields(config) == {"beta": 0.04, "names": ["b"]}
    assert changed_fields(Config()) == {}
