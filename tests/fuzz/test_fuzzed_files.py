"""Wrong files, flags and lines: each is answered in one sentence, in no time."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from outcomes import within
from wrong_files import FLAGS, PAIRS, PROBLEMS, YAMLS
from wrong_values import WRONG, hints, kinds

from grpo_ext.cli import parse
from grpo_ext.data.jsonl import jsonl
from grpo_ext.data.preferences import load_preferences
from grpo_ext.recipes.arguments import DEFAULTS, RecipeArguments

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 30


def told(call: Any, *args: Any, **kwargs: Any) -> str | None:
    """The sentence that a call is answered with, or None when it works."""
    with within(SECONDS):
        try:
            call(*args, **kwargs)
        except (ValueError, OSError) as error:
            text = str(error)
            assert "\n" not in text and text, repr(text)
            return text
    return None


def check(text: str | None, words: list[str]) -> None:
    assert (text is None) == (not words), text
    assert all(word in (text or "") for word in words), text


def read(folder: Path, *words: str) -> None:
    argv = [*words] if "--output_dir" in words else ["--output_dir", str(folder / "out"), *words]
    parse(RecipeArguments, ["--use_cpu", "true", "--bf16", "false", *argv], DEFAULTS)


def read_file(folder: Path, content: bytes) -> None:
    file = folder / "run.yaml"
    file.write_bytes(content)
    # The folder is set in the file
    parse(RecipeArguments, ["--use_cpu", "true", "--bf16", "false", "--config", str(file)], DEFAULTS)


@pytest.mark.parametrize("name", YAMLS)
def test_file_of_fields(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content, words = YAMLS[name]
    check(told(read_file, tmp_path, content), words)


def test_a_sample_of_flags(tmp_path: Path) -> None:
    for words in list(FLAGS)[::7]:
        check(told(read, tmp_path, *words), FLAGS[words])


@pytest.mark.slow
@pytest.mark.parametrize("words", FLAGS, ids=lambda words: " ".join(words)[:40].replace("\x00", "0"))
def test_flags(words: tuple[str, ...], tmp_path: Path) -> None:
    check(told(read, tmp_path, *words), FLAGS[words])


@pytest.mark.parametrize("name", PROBLEMS)
def test_lines_of_problems(name: str, tmp_path: Path) -> None:
    content, words = PROBLEMS[name]
    file = tmp_path / "problems.jsonl"
    file.write_bytes(content)
    check(told(jsonl, file), words)


@pytest.mark.parametrize("name", PAIRS)
def test_lines_of_preferences(name: str, tmp_path: Path) -> None:
    content, words = PAIRS[name]
    file = tmp_path / "pairs.jsonl"
    file.write_bytes(content)
    check(told(load_preferences, str(file), test_size=1), words)


@pytest.mark.slow
def test_wrong_values_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bad = []
    wrong = [(name, value) for name, hint in hints().items() for kind in kinds(hint) for value in WRONG[kind]]
    wrong = [(name, value) for name, value in wrong if name != "deepspeed"]  # is asked for by name, and not installed
    for name, value in wrong[::17]:
        try:
            content = yaml.safe_dump({name: value}).encode()
        except (yaml.YAMLError, ValueError):
            continue  # half a character, or more digits than Python writes
        text = told(read_file, tmp_path, content)
        if text is not None and name not in text and "--config" not in text:
            bad.append((name, value, text))
    assert not bad


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["-m", "grpo_ext.recipes.gsm8k", "--config", "bad.yaml"],
        ["-m", "grpo_ext.recipes.gsm8k", "--lerning_rate", "1"],
        ["-m", "grpo_ext.recipes.rlhf", "--config", "bad.yaml"],
        ["-m", "grpo_ext", "plan", "bad.yaml"],
    ],
    ids=lambda words: " ".join(words[1:]),
)
def test_process_answers_in_one_line(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_bytes(YAMLS["bomb of merges"][0])
    command = [sys.executable, *words]
    env = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path, env=env, check=False)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("error: ")]) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.yaml"]


def test_settings_of_a_run_can_be_written(tmp_path: Path) -> None:
    """What a sentence says is of the file's own values, which may be halves of characters."""
    text = told(read_file, tmp_path, b'"\\ud800": 1\n')
    assert text is not None and json.dumps(text)
