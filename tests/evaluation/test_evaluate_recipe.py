"""`python -m grpo_ext.recipes.evaluate` from its words to its files."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluation_words import results, save_adapter, save_tiny, words
from safetensors.torch import load_file, save_file

from grpo_ext.evaluation.questions import Answer, questions
from grpo_ext.evaluation.scores import Reading
from grpo_ext.evaluation.store import write_scored
from grpo_ext.evaluation.subjects import Subject, subject_named
from grpo_ext.evaluation.tasks import TASKS
from grpo_ext.recipes.evaluate import checked, main, parser

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("models")
    base = save_tiny(folder / "tiny")
    return base, save_adapter(base, folder / "adapter")


def test_a_model_and_its_adapter(models: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    assert main(words(*models, output=output)) == 0
    found = json.loads((output / "results.json").read_text())
    names = ["greedy pass@1", "pass@1", "pass@2", "pass@4", "maj@4"]
    for model, name in zip(found["models"], models, strict=True):
        assert model["name"] == name and model["problems"] == 12 and model["samples"] == 4
        assert list(model["measures"]) == names
        for readers in model["measures"].values():
            assert set(readers) == {"strict", "lenient"}
            assert all(0 <= i["low"] <= i["value"] <= i["high"] <= 1 for i in readers.values())
            assert readers["strict"]["value"] <= readers["lenient"]["value"]
    assert len(found["differences"]) == 2 * len(names)
    assert found["arguments"]["task"] == "arithmetic" and "torch" in found["versions"]
    texts = []
    for folder in sorted(path.parent for path in output.glob("*/samples.jsonl")):
        scored = [json.loads(line) for line in (folder / "scored.jsonl").read_text().splitlines()]
        assert len(scored) == 12 * 5 and {"question", "answer", "text", "strict", "lenient"} <= set(scored[0])
        texts.append([row["text"] for row in scored])
    # The adapter speaks with its own weights
    assert texts[0] != texts[1]
    printed = capsys.readouterr().out
    for word in ("greedy pass@1", "maj@4", "strict", "lenient", "Differences", "beyond noise", "results.json"):
        assert word in printed


def test_batch_size_and_more_samples_keep_what_is_there(models: tuple[str, str], tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    assert main(words(models[0], output=one, samples=4, batch_size=5)) == 0
    assert main(words(models[0], output=other, samples=2, batch_size=64)) == 0
    before = next(other.glob("*/samples.jsonl")).read_bytes()
    assert main(words(models[0], output=other, samples=4, batch_size=7)) == 0
    assert next(other.glob("*/samples.jsonl")).read_bytes().startswith(before)
    assert results(one) == results(other)
    # Fewer problems are the beginning of more
    assert main(words(models[0], output=other, samples=4, problems=5)) == 0
    assert results(other)["models"][0]["problems"] == 5


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"task": "gsm9k"}, "`task` is 'gsm9k'; it must be one of: gsm8k"),
        ({"task": "none.jsonl"}, "`task` names the file 'none.jsonl'"),
        ({"samples": -1}, "`samples` is -1"),
        ({"problems": 0}, "`problems` is 0"),
        ({"k": [1, 9]}, r"`k` is \[1, 9\]; each must be from 1 to `samples`, which is 4"),
        ({"temperature": 0}, "`temperature` is 0.0; it must be above 0"),
        ({"top_p": 1.5}, "`top_p` is 1.5"),
        ({"samples": 0, "no_greedy": True}, "`no_greedy` leaves nothing"),
        ({"engine": "server"}, "`vllm_server_urls` belong together"),
        ({"vllm_max_model_length": 99}, "`vllm_max_model_length` does nothing with `engine` 'transformers'"),
        ({"vllm_gpu_memory_utilization": 0.5}, "`vllm_gpu_memory_utilization` does nothing with `engine` 'transf"),
        ({"vllm_server_urls": ["http://localhost:1"]}, "`dtype` does nothing with `engine` 'server'"),
        ({"base_model": "other"}, "`base_model` is the base of adapters, and none of the models is one"),
        ({"system_prompt": "x"}, "`system_prompt` is not part of the built-in problems"),
        ({"split": "dev"}, "split`? is 'dev'"),
    ],
    ids=str,
)
def test_wrong_words_get_one_sentence(
    models: tuple[str, str], tmp_path: Path, fields: dict[str, Any], match: str
) -> None:
    with pytest.raises((ValueError, OSError), match=match) as caught:
        main(words(models[0], output=tmp_path / "out", **fields))
    assert "\n" not in str(caught.value)


def test_models_that_are_not_there(models: tuple[str, str], tmp_path: Path) -> None:
    output = tmp_path / "out"
    with pytest.raises(OSError, match=r"the folder './none' does not exist"):
        main(words("./none", output=output))
    (tmp_path / "empty").mkdir()
    with pytest.raises(OSError, match=r"neither a config.json nor an adapter_config.json"):
        main(words(str(tmp_path / "empty"), output=output))
    with pytest.raises(ValueError, match="would share the folder"):
        main(words(models[0], models[0], output=output))


def test_an_adapter_without_its_base(models: tuple[str, str], tmp_path: Path) -> None:
    base, adapter = models
    folder = tmp_path / "adapter"
    save_adapter(base, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "./gone"}))
    with pytest.raises(OSError, match=r"needs its base, but the model folder './gone' does not exist.*`base_model`"):
        subject_named(str(folder))
    assert subject_named(str(folder), base) == Subject(str(folder), base, str(folder), 4)
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    with pytest.raises(ValueError, match="does not say which model it is for"):
        subject_named(str(folder))
    other = save_tiny(tmp_path / "other", seed=3)
    weights = load_file(Path(adapter) / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file({name: torch.zeros(3, 3) for name in weights}, folder / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="does not fit the model"):
        main(words(str(folder), output=tmp_path / "out", base_model=other))


def test_other_settings_and_other_weights_are_not_mixed(models: tuple[str, str], tmp_path: Path) -> None:
    folder, output = tmp_path / "adapter", tmp_path / "out"
    save_adapter(models[0], folder)
    assert main(words(str(folder), output=output)) == 0
    with pytest.raises(ValueError, match=r"`temperature` is 0.5, but the samples in .* were made with 0.7"):
        main(words(str(folder), output=output, temperature=0.5))
    # Trained further into the same folder
    weights = load_file(folder / "adapter_model.safetensors")
    save_file({name: weight * 1.01 for name, weight in weights.items()}, folder / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="`weights` is"):
        main(words(str(folder), output=output))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.model", "chat_template.jinja"])
def test_every_file_that_decides_an_answer_is_in_the_fingerprint(name: str, tmp_path: Path) -> None:
    subject = Subject("m", str(tmp_path))
    before = subject.fingerprint()
    (tmp_path / name).write_text("a")
    found = subject.fingerprint()
    (tmp_path / name).write_text("b")
    assert len({before, found, subject.fingerprint()}) == 3
    (tmp_path / "README.md").write_text("c")
    (tmp_path / name).write_text("a")
    assert subject.fingerprint() == found


def test_scored_answers_are_replaced_whole(tmp_path: Path) -> None:
    path, rows = tmp_path / "scored.jsonl", [{"question": name, "prompt": name, "answer": "1"} for name in "qr"]
    path.write_text("old")
    asked = questions(rows, greedy=True, samples=0)
    readings = {"strict": Reading(right={(0, None): 1.0})}  # of one of the two
    with pytest.raises(KeyError):
        write_scored(path, asked, [Answer("1", 1, True)] * 2, rows, readings)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_tokenizer_without_a_template(models: tuple[str, str], tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "base")
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        path = Path(model) / name
        if name.endswith("json"):
            config = json.loads(path.read_text())
            config.pop("chat_template", None)
            path.write_text(json.dumps(config))
        else:
            path.unlink(missing_ok=True)
    with pytest.raises(ValueError, match="no chat template; add --plain"):
        main(words(model, output=tmp_path / "out"))
    assert main(words(model, output=tmp_path / "out", plain=True)) == 0


def test_an_interrupt_says_how_to_go_on(
    models: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("grpo_ext.evaluation.local.LocalModel.complete", stopped)
    assert main(words(models[0], output=tmp_path / "out")) == 130
    assert "the same command goes on" in capsys.readouterr().out
    monkeypatch.setattr("grpo_ext.evaluation.local.LocalModel.complete", lambda *_: stopped_for_memory())
    with pytest.raises(ValueError, match="smaller --batch_size goes on from here"):
        main(words(models[0], output=tmp_path / "out"))


def stopped_for_memory() -> None:
    raise torch.OutOfMemoryError("no memory")


def test_the_pages_commands_are_taken(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "how-to" / "evaluate.md").read_text()
    commands = re.findall(r"^python -m grpo_ext\.recipes\.evaluate ((?:[^\n\\]|\\\n)*)", page, re.MULTILINE)
    assert len(commands) >= 3
    for command in commands:
        argv = shlex.split(command.replace("\\\n", " "))
        args = checked(parser().parse_args(argv))
        assert args.task in TASKS or args.task.endswith(".jsonl")


@pytest.mark.slow
def test_the_command_answers_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "grpo_ext.recipes.evaluate", *words("./none", output=tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "error: the folder './none' does not exist" in done.stderr
