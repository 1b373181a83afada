"""An evaluation that is killed and started again has the answers and figures of one that was not."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from evaluation_words import results, save_tiny, words
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_ext.evaluation.answering import answer_all
from grpo_ext.evaluation.questions import Answer, Question, questions
from grpo_ext.evaluation.store import SampleStore
from grpo_ext.recipes.evaluate import main

ROOT = Path(__file__).resolve().parents[2]
ROWS = [{"prompt": f"{row} + 1?", "answer": str(row + 1)} for row in range(7)]
ASKED = questions(ROWS, greedy=True, samples=3)


def spoken(asked: list[Question]) -> list[Answer]:
    """Stands for a model: text of several bytes a letter, with line ends, that depends on the batch's question."""
    return [Answer(f"{one.digest(0)}\n答案是 \u2028{one.sample}", 3, True) for one in asked]


def fill(folder: Path, batch_size: int = 4) -> bytes:
    store = SampleStore(folder, {"seed": 0})
    answers = answer_all(store, ASKED, batch_size, lambda: spoken, quiet=True)
    assert answers == spoken(ASKED)
    return store.path.read_bytes()


@settings(max_examples=60)
@given(st.data())
def test_a_file_cut_anywhere_is_completed_to_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    whole = fill(folder)
    path = folder / "samples.jsonl"
    cut = data.draw(st.integers(0, len(whole)))
    # What a broken write of a filesystem may leave behind the last line, too
    path.write_bytes(whole[:cut] + data.draw(st.sampled_from([b"", b"\x00" * 9, b'{"problem": 1'])))
    assert fill(folder) == whole


def test_nothing_is_loaded_when_all_is_there(tmp_path: Path) -> None:
    whole = fill(tmp_path)
    store = SampleStore(tmp_path, {"seed": 0})
    assert answer_all(store, ASKED, 4, lambda: pytest.fail("loaded"), quiet=True) == spoken(ASKED)
    assert store.path.read_bytes() == whole


def test_a_batch_is_made_as_a_whole(tmp_path: Path) -> None:
    whole = fill(tmp_path)
    lines = whole.splitlines(keepends=True)
    (tmp_path / "samples.jsonl").write_bytes(b"".join(lines[:7]) + lines[7][:10])
    seen: list[list[Question]] = []
    store = SampleStore(tmp_path, {"seed": 0})
    answer_all(store, ASKED, 4, lambda: lambda asked: seen.append(list(asked)) or spoken(asked), quiet=True)
    # Seven greedy answers in batches of four and three, after the settings: six leave the second batch in part
    assert seen[0] == ASKED[4:7] and len(seen) == 1 + 6
    assert store.path.read_bytes() == whole


def child(argv: list[str], log: str) -> None:
    """The recipe in a forked process: libraries that are loaded need not be loaded again."""
    torch.set_num_threads(1)  # a pool of threads does not survive a fork
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    main(argv)


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "tiny")
    whole = words(model, output=tmp_path / "whole", problems=20, batch_size=7)
    start = time.monotonic()
    assert main(whole) == 0
    duration = time.monotonic() - start
    samples = next((tmp_path / "whole").glob("*/samples.jsonl")).read_bytes()

    draw, context = random.Random(0), multiprocessing.get_context("fork")
    killed, sizes = 0, []
    argv = words(model, output=tmp_path / "killed", problems=20, batch_size=7)
    for _ in range(40):
        process = context.Process(target=child, args=(argv, str(tmp_path / "log")))
        process.start()
        before = sizes[-1] if sizes else 0
        path = next((tmp_path / "killed").glob("*/samples.jsonl"), None)
        # From the first new answer on, a random part of the time that the whole took
        while process.is_alive() and (path is None or path.stat().st_size <= before):
            path = next((tmp_path / "killed").glob("*/samples.jsonl"), None)
            time.sleep(0.001)
        process.join(draw.uniform(0, duration / 8))
        process.kill()
        process.join()
        if process.exitcode != -signal.SIGKILL:
            break  # it was faster
        killed += 1
        assert path is not None
        sizes.append(path.stat().st_size)
        assert samples.startswith(path.read_bytes())
    assert killed >= 3, sizes
    assert main(argv) == 0
    assert next((tmp_path / "killed").glob("*/samples.jsonl")).read_bytes() == samples
    assert results(tmp_path / "killed") == results(tmp_path / "whole")


@pytest.mark.slow
def test_the_command_itself_is_killed(tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "tiny")
    fields = {"problems": 100, "samples": 8, "batch_size": 16}
    assert main(words(model, output=tmp_path / "whole", **fields)) == 0
    argv = words(model, output=tmp_path / "killed", **fields)
    command = [sys.executable, "-m", "grpo_ext.recipes.evaluate", *argv]
    draw, killed = random.Random(1), 0
    for _ in range(4):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        size = sum(path.stat().st_size for path in (tmp_path / "killed").glob("*/samples.jsonl"))
        while process.poll() is None:
            now = sum(path.stat().st_size for path in (tmp_path / "killed").glob("*/samples.jsonl"))
            if now > size:
                time.sleep(draw.uniform(0, 0.3))
                break
            time.sleep(0.001)
        killed += process.poll() is None
        process.kill()
        process.wait()
    assert killed >= 3
    assert main(argv) == 0
    one, other = (next((tmp_path / name).glob("*/samples.jsonl")) for name in ("whole", "killed"))
    assert one.read_bytes() == other.read_bytes()
    assert results(tmp_path / "killed") == results(tmp_path / "whole")
