"""The page about health has one row for each detector, with the thresholds that the code has."""

import re
from pathlib import Path

import pytest

from grpo_ext.callbacks.health import STOPPED
from grpo_ext.callbacks.interrupt import REQUEUE
from grpo_ext.faults import FAULTED
from grpo_ext.health import DETECTORS, thresholds

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "how-to" / "health.md").read_text(encoding="utf-8")
ROWS = {cells[1].strip().strip("`"): cells for line in PAGE.splitlines() if len(cells := line.split("|")) == 7}


def test_every_detector_has_its_row() -> None:
    assert [name for name in ROWS if name in DETECTORS] == list(DETECTORS)
    assert set(ROWS) - set(DETECTORS) == {"detector", "---"}


@pytest.mark.parametrize("name", DETECTORS)
def test_thresholds_are_those_of_the_code(name: str) -> None:
    told = {field: float(value) for field, value in re.findall(r"`(\w+)` ([\d.]+)", ROWS[name][3])}
    assert told == thresholds(DETECTORS[name])
    assert all(cell.strip() for cell in ROWS[name][1:6])


def test_the_exit_code_is_told() -> None:
    ends = f"{FAULTED}: a [fault](faults.md), {REQUEUE}: SIGTERM, 130: Ctrl-C; 1 under a [launcher]"
    codes = f"code {STOPPED} (0: finished, 2: an error, {ends}"
    assert codes in PAGE.replace("\n", " ")


def test_the_script_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (script,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    names: dict[str, object] = {}
    exec(script, names)
    assert names["watch"].stop_on == ("kl_drift",)  # type: ignore[attr-defined]
