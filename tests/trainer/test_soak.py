"""Two hundred steps hold no more memory, files, processes or folders at their end than after fifty."""

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest

HERE = Path(__file__).parent
# Bytes of Python's own that a step may leave: its row in the log that transformers keeps, of about forty names and
# numbers. While the health callback kept a copy of each row it was 3,100.
ROW = 2500
# Objects that a step may leave: that row
OBJECTS = 1.5


@pytest.mark.slow
def test_two_hundred_steps_pile_nothing_up(tiny_folder: Path, tmp_path: Path) -> None:
    out, temporary = tmp_path / "out", tmp_path / "temporary"
    temporary.mkdir()
    path = os.pathsep.join([str(HERE.parents[1]), str(HERE), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "TMPDIR": str(temporary)}
    command = [sys.executable, str(HERE / "soak_run.py"), str(tiny_folder), str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    held = json.loads((out / "held.json").read_text())
    readings, grown = held["readings"], "\n".join(held["grown"])
    assert [reading["step"] for reading in readings] == list(range(50, 200, 10))
    early, late = readings[:5], readings[-5:]

    # The checkpoint, the evaluation and the groups that are resampled come and go in a rhythm of ten steps
    steps = late[0]["step"] - early[0]["step"]
    resident = [median(reading["resident"] for reading in part) for part in (early, late)]
    assert resident[1] < 1.02 * resident[0], resident
    python = (median(row["python"] for row in late) - median(row["python"] for row in early[1:])) / steps
    assert python < ROW, f"{python:.0f} bytes a step\n{grown}"
    objects = (median(row["objects"] for row in late) - median(row["objects"] for row in early)) / steps
    assert objects < OBJECTS, f"{objects:.2f} objects a step\n{grown}"
    tensors = [median(row["tensors"] for row in part) for part in (early, late)]
    assert tensors[1] <= tensors[0], tensors
    for name in ("threads", "files", "children", "temporary"):
        assert all(row[name] == readings[0][name] for row in readings), (name, [row[name] for row in readings])
    assert all(len(row["checkpoints"]) == 2 for row in readings)

    # What piles up was on: groups were drawn again, completions thinned out to the limit of their file
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert sum(row.get("resampling/groups_replaced", 0) for row in rows) > 0
    assert 20_000 < (out / "completions.jsonl").stat().st_size <= 100_000
    assert sum("eval_loss" in row for row in rows) == 20
