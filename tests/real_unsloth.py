"""The real Unsloth for tests: each script in a process and a working directory of its own, its results as JSON."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 500
# Nothing here may ask the hub, and Unsloth would count its users there
QUIET = {"HF_HUB_OFFLINE": "1", "UNSLOTH_DISABLE_STATISTICS": "1", "TOKENIZERS_PARALLELISM": "false"}


def start(folder: Path, *command: str, **variables: str) -> subprocess.Popen:
    """A Python process in a folder, with its output in the folder's file `log`."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **QUIET, "PYTHONPATH": os.pathsep.join(paths), **variables}
    env.pop("UNSLOTH_COMPILE_LOCATION", None)
    with (folder / "log").open("w") as log:
        return subprocess.Popen([sys.executable, *command], cwd=folder, env=env, stdout=log, stderr=log)


def finish(process: subprocess.Popen, folder: Path) -> str:
    """Wait for it; what it has said."""
    try:
        code = process.wait(timeout=SECONDS)
    finally:
        process.kill()
    said = (folder / "log").read_text()
    assert code == 0, said[-5000:]
    return said


def run(folder: Path, script: str, *words: str, **variables: str) -> Any:
    """Run a script of the tests' folders; the JSON object that it prints last, whatever its libraries say after it.

    Args:
        folder: working directory, which is made.
        script: path below tests/.
        words: its arguments.
        variables: of its environment.
    """
    said = finish(start(folder, str(ROOT / "tests" / script), *words, **variables), folder)
    return json.loads([line for line in said.splitlines() if line.startswith('{"')][-1])
