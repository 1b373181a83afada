"""How a recipe starts: the back end before TRL, and thin faces over one run."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from grpo_ext.flags import flag
from grpo_ext.launch import run

ROOT = Path(__file__).resolve().parents[2]
FACES = ["gsm8k", "math", "cmath", "deepseekmath", "rlhf"]
# Stands in for unsloth: says what had been imported before it, and ends the process
FAKE = "import sys\nprint('STAND-IN', sorted({'trl', 'transformers', 'torch'} & set(sys.modules)))\nsys.exit(7)\n"


def started(face: str, tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "unsloth.py").write_text(FAKE)
    code = (
        f"import runpy, sys; sys.path[:0] = [{str(ROOT)!r}, {str(tmp_path)!r}]; sys.argv = ['recipe', *sys.argv[1:]]\n"
        f"runpy.run_module('grpo_ext.recipes.{face}', run_name='__main__')"
    )
    command = [sys.executable, "-c", code, *words, "--output_dir", str(tmp_path / "out"), "--lora_r", "minus"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path, check=False)


@pytest.mark.parametrize("words", [["--backend=unsloth"], ["--backend", "unsloth"], ["--config", "run.yaml"]])
def test_the_back_end_is_imported_before_everything(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("backend: unsloth\n")
    done = started("gsm8k", tmp_path, *words)
    assert (done.returncode, done.stdout) == (7, "STAND-IN []\n"), done.stderr


def test_the_back_end_is_imported_only_when_asked_for(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("backend: unsloth\n")
    done = started("gsm8k", tmp_path, "--config", "run.yaml", "--backend", "transformers")
    # The parser, which comes after TRL, is reached and refuses the rank
    assert done.returncode == 2 and "--lora_r" in done.stderr and "STAND-IN" not in done.stdout, done.stderr


def test_faces_import_nothing_heavy() -> None:
    faces = "; ".join(f"import grpo_ext.recipes.{face}" for face in FACES)
    code = f"import sys; {faces}; sys.exit(str(sorted({{'trl', 'transformers', 'torch'}} & set(sys.modules))))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT, check=False
    )
    assert done.stderr.strip() == "[]"


def test_unknown_back_end_in_one_line(tmp_path: Path) -> None:
    done = started("math", tmp_path, "--backend", "jax")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.startswith("error: backend is 'jax'")


def test_flags_as_argparse_reads_them() -> None:
    assert flag(["--a", "1", "--a=2", "--ab", "3"], "a") == "2"
    assert flag(["--a"], "a") is None and flag([], "a") is None and flag(["--a="], "a") == ""


def test_a_run_ends_its_process_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("grpo_ext"), "handlers", [])

    def main(words: list[str]) -> int:
        torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
        return 0

    with pytest.raises(SystemExit) as ended:
        run(main)
    assert ended.value.code == 0 and not torch.distributed.is_initialized()
