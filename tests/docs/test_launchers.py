"""What docs/how-to/resume.md says of the launcher between a scheduler and the training."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

# Takes two seconds from SIGTERM to its end, as a step and a checkpoint do
SCRIPT = """
import signal, sys, time
from pathlib import Path
out, told = Path(sys.argv[1]), []
signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
(out / "began").touch()
while not told:
    time.sleep(0.05)
time.sleep(2.0)
(out / "saved").touch()
sys.exit(75)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("seconds", "saved"), [("60", True), ("1", False)])
def test_sigterm_under_a_launcher(seconds: str, saved: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", seconds)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1"]
    launched = subprocess.Popen([*command, "train.py", "."], cwd=tmp_path, stderr=subprocess.PIPE)
    for _ in range(1200):
        if (tmp_path / "began").exists():
            break
        time.sleep(0.1)
    launched.send_signal(signal.SIGTERM)
    launched.communicate(timeout=120)
    # Not 75
    assert launched.returncode == 1
    assert (tmp_path / "saved").exists() == saved
