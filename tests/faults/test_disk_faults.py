"""A disk without room: checkpoints and logs are whole or not there, and training goes on while it can."""

import json
import logging
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from table import Row, by_its_rows
from tiny_runs import largest_difference, make, weights
from transformers import TrainerState

from grpo_ext.callbacks import CompletionsCallback, MetricsCallback
from grpo_ext.callbacks import completions as completions_callback
from grpo_ext.callbacks import metrics as metrics_callback
from grpo_ext.callbacks import rows as log_rows
from grpo_ext.callbacks.rows import append
from grpo_ext.checkpoints import WORKING, choose, cut_short, flaw, size
from grpo_ext.faults import RunStopped
from grpo_ext.trainer import resume

RUN: dict[str, Any] = {"optim": "adamw_torch", "max_steps": 3, "save_strategy": "steps", "save_steps": 1}


@contextmanager
def files_of_at_most(count: int) -> Iterator[None]:
    """Within the context the kernel writes no file beyond some bytes: a write is cut short, the next one fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def cut(inner: Callable[..., Any]) -> Callable[..., Any]:
    """A writer whose file lacks its last bytes, without a word."""

    def write(content: Any, path: Any, *args: Any, **kwargs: Any) -> None:
        inner(content, path, *args, **kwargs)
        whole = Path(path).read_bytes()
        Path(path).write_bytes(whole[:-100])

    return write


def saving_fails_at(trainer: Any, steps: tuple[int, ...], short: Callable[[], Any]) -> None:
    """Have a fault happen while the checkpoints of some steps are written."""
    inner = trainer._save_optimizer_and_scheduler

    def save(folder: str) -> None:
        if trainer.state.global_step not in steps:
            inner(folder)
            return
        with short():
            inner(folder)

    trainer._save_optimizer_and_scheduler = save


@contextmanager
def short_writes() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "save", cut(torch.save))
        yield


def made(folder: Path) -> list[str]:
    """Checkpoints of a folder that has nothing else of them."""
    assert not (folder / WORKING).exists()
    return sorted(path.name for path in folder.glob("checkpoint-*"))


SHORT: dict[str, tuple[Callable[[], Any], str]] = {
    "checkpoint": (lambda: files_of_at_most(20_000), "torch wrote a part of a file"),
    "short write": (short_writes, "optimizer.pt is cut off after "),
}


@by_its_rows
def test_a_checkpoint_that_cannot_be_written(
    row: Row, tiny_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    short, reason = SHORT[row.name]
    trainer = make(tiny_folder, tmp_path, **RUN)
    saving_fails_at(trainer, (2,), short)
    with caplog.at_level(logging.WARNING, "grpo_ext"):
        trainer.train()
    assert made(tmp_path) == ["checkpoint-1", "checkpoint-3"]
    assert all(flaw(tmp_path / name) is None for name in made(tmp_path))
    (told,) = [record.getMessage() for record in caplog.records if "could not be written" in record.getMessage()]
    assert told.startswith(f"checkpoint-2 could not be written ({reason}")
    held = size(sum(path.stat().st_size for path in (tmp_path / "checkpoint-1").rglob("*")))
    assert f" are free in {tmp_path}, about {held} are needed, so training goes on" in told
    assert "1 in a row of at most 2 (`max_failed_saves`)" in told


def test_too_many_in_a_row_stop_and_nothing_is_lost(tiny_folder: Path, tmp_path: Path) -> None:
    trainer = make(tiny_folder, tmp_path, **{**RUN, "max_steps": 4, "max_failed_saves": 1})
    saving_fails_at(trainer, (2, 3), SHORT["checkpoint"][0])
    with pytest.raises(RunStopped, match=r"^checkpoint-3 .*, 2 times in a row \(`max_failed_saves` is 1\); make room"):
        trainer.train()
    assert choose("last", tmp_path) == tmp_path / "checkpoint-1"
    again = make(tiny_folder, tmp_path, **{**RUN, "max_steps": 4})
    again.train(resume_from_checkpoint="last")
    whole = make(tiny_folder, tmp_path / "whole", **{**RUN, "max_steps": 4, "save_strategy": "no"})
    whole.train()
    assert largest_difference(weights(again.model), weights(whole.model)) == 0.0


@by_its_rows
def test_the_last_checkpoint_that_cannot_be_written(row: Row, tiny_folder: Path, tmp_path: Path) -> None:
    trainer = make(tiny_folder, tmp_path, **RUN)
    saving_fails_at(trainer, (3,), SHORT["checkpoint"][0])
    with pytest.raises(RunStopped, match=r"^checkpoint-3 could not be .*, and this is the last one; make room") as e:
        trainer.train()
    assert f"Step 3 could not be saved in {tmp_path / 'checkpoint-3'} (checkpoint-3 could not" in e.value.__notes__[0]
    assert made(tmp_path) == ["checkpoint-1", "checkpoint-2"]


@pytest.mark.parametrize("writer", ["safetensors", "json"])
def test_each_writer_is_understood(
    writer: str, tiny_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours and those of transformers, for a file of theirs that is larger than the disk."""
    trainer = make(tiny_folder, tmp_path, **{**RUN, "max_steps": 2})
    owner, name = {"safetensors": (resume, "save_file"), "json": (TrainerState, "save_to_json")}[writer]
    limited(monkeypatch, owner, name, lambda: trainer.state.global_step == 1)
    with caplog.at_level(logging.WARNING, "grpo_ext"):
        trainer.train()
    assert made(tmp_path) == ["checkpoint-2"]
    assert "checkpoint-1 could not be written (File too large): " in caplog.text


def limited(patch: pytest.MonkeyPatch, owner: Any, name: str, when: Callable[[], bool]) -> None:
    inner = getattr(owner, name)

    def write(*args: Any, **kwargs: Any) -> Any:
        with files_of_at_most(100 if when() else 2**40):
            return inner(*args, **kwargs)

    patch.setattr(owner, name, write)


def test_an_error_that_is_no_full_disk_goes_on_up(tiny_folder: Path, tmp_path: Path) -> None:
    trainer = make(tiny_folder, tmp_path, **RUN)

    def broken(folder: str) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    trainer._save_optimizer_and_scheduler = broken
    with pytest.raises(RuntimeError, match="illegal memory access"):
        trainer.train()
    assert not (tmp_path / WORKING).exists()


# Logs


@by_its_rows
def test_a_row_that_cannot_be_written(
    row: Row, tiny_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics, completions = tmp_path / "metrics.jsonl", tmp_path / "completions.jsonl"
    trainer = make(tiny_folder, tmp_path, max_steps=3)
    trainer.add_callback(MetricsCallback(metrics))
    trainer.add_callback(CompletionsCallback(completions, trainer.newest_groups))

    def limited_append(path: Path, text: str) -> bool:
        with files_of_at_most(path.stat().st_size + 20 if trainer.state.global_step == 2 else 2**40):
            return append(path, text)

    for module in (completions_callback, metrics_callback):
        monkeypatch.setattr(module, "append", limited_append)
    with caplog.at_level(logging.WARNING, "grpo_ext"):
        trainer.train()
    for path in (metrics, completions):
        steps = [json.loads(line)["step"] for line in path.read_text().splitlines()]
        assert steps[0] == 1 and 2 not in steps and steps[-1] == 3
        assert f"Nothing can be written to {path} (No space left on device), so rows are left out" in caplog.text
    assert len(log_rows._unwritten & {metrics, completions}) == 0


def test_a_row_that_was_cut_off_goes_with_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    assert append(path, '{"step": 2}\n')
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    with files_of_at_most(path.stat().st_size + 4):
        assert not append(path, '{"step": 3}\n')
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    path.write_text('{"st')
    assert append(path, '{"step": 1}\n') and path.read_text() == '{"step": 1}\n'


def test_files_that_end_too_early_are_found(tiny_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_folder, tmp_path, dirs_exist_ok=True)
    torch.save({"a": torch.ones(9)}, tmp_path / "rng_state.pth")
    assert cut_short(tmp_path) is None
    for path in (tmp_path / "model.safetensors", tmp_path / "rng_state.pth"):
        whole = path.read_bytes()
        path.write_bytes(whole[:-1])
        assert cut_short(tmp_path) == f"{path.name} is cut off after {size(len(whole) - 1)}"
        path.write_bytes(whole)
    assert [size(number) for number in (0, 1023, 1536, 5 * 2**40)] == ["0 bytes", "1.02e+03 bytes", "1.5 KiB", "5 TiB"]


REAL = """
import sys
from pathlib import Path
from tiny_runs import make
from grpo_ext.checkpoints import flaw
from grpo_ext.faults import RunStopped
disk = Path(sys.argv[2])
trainer = make(Path(sys.argv[1]), disk, optim="adamw_torch", max_steps=9, save_strategy="steps", save_steps=1)
try:
    trainer.train()
except RunStopped as error:
    print("sentence:", error)
print("whole:", sorted(path.name for path in disk.glob("checkpoint-*") if flaw(path) is None))
print("left:", sorted(path.name for path in disk.iterdir()))
"""


@pytest.mark.slow
def test_a_real_disk_that_is_full(tiny_folder: Path, tmp_path: Path) -> None:
    """A file system in memory with room for two checkpoints, mounted by `unshare` in a name space of its own."""
    script, disk = tmp_path / "run.py", tmp_path / "disk"
    script.write_text(REAL)
    disk.mkdir()
    weights_and_moments = 3 * (tiny_folder / "model.safetensors").stat().st_size
    mount = f'mount -t tmpfs -o size={int(2.7 * weights_and_moments)} tmpfs "$2" && exec "$0" "$@"'
    within = ["unshare", "--map-root-user", "--mount", "sh", "-c", mount.replace("$2", "$3")]
    here = Path(__file__).resolve().parent
    paths = [str(here.parents[1]), str(here.parent / "trainer"), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [*within, sys.executable, str(script), str(tiny_folder), str(disk)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "sentence: checkpoint-5 could not be written (" in done.stdout, done.stdout + done.stderr
    assert ", 3 times in a row (`max_failed_saves` is 2); make room" in done.stdout
    assert "whole: ['checkpoint-1', 'checkpoint-2']" in done.stdout, done.stdout
    assert "left: ['README.md', 'checkpoint-1', 'checkpoint-2']" in done.stdout, done.stdout
