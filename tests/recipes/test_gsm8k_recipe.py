"""The recipe from end to end: quickly with a tiny random model, slowly with the real model and the real data."""

import json
import re
from pathlib import Path

import pytest
from peft import PeftModel
from tiny_recipe import words as tiny_words
from transformers import AutoModelForCausalLM

from grpo_ext.recipes.gsm8k import main
from grpo_ext.report import read_run
from grpo_ext.trainer import GRPOExtTrainer

ROOT = Path(__file__).resolve().parents[2]


def words(model: Path, output: Path, **more: object) -> list[str]:
    return tiny_words(model, output, **{"sft_steps": 1, "sft_batch_size": 4, **more})


def test_leaves_everything_it_promises(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "run"
    assert main(words(tiny_folder, output)) == 0
    summary = json.loads((output / "summary.json").read_text())
    for key in ("before", "after", "steps", "seconds", "model", "dataset", "versions"):
        assert summary[key] is not None, key
    assert 0.0 <= summary["before"]["accuracy"] <= 1.0
    assert summary["after"]["problems"] == 4
    assert summary["steps"] == 2
    assert (output / "learning_curve.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    run = read_run(output)
    assert run.notes == [] and [group["step"] for group in run.groups] == [1, 2]
    assert run.summary["hardware"]["cores"] >= 1 and run.summary["config"]["max_steps"] == 2
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "reward" in row] == [1, 2]
    base = AutoModelForCausalLM.from_pretrained(tiny_folder)
    adapted = PeftModel.from_pretrained(base, output / "adapter")
    assert any("lora_B" in name and weight.abs().max() > 0 for name, weight in adapted.named_parameters())
    printed = capsys.readouterr()
    assert "Before: " in printed.out and "After: " in printed.out and "answered" in printed.out
    assert "reward=" in printed.err


def test_programs_with_tests(tiny_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "programs.jsonl"
    row = {"prompt": "Print 6.", "tests": [{"input": "", "output": "6"}]}
    file.write_text("".join(json.dumps({**row, "level": level}) + "\n" for level in range(4)))
    own = {"dataset": file, "eval_datasets": file, "eval_size": 2, "train_size": 4, "reward_funcs": "code"}
    given = words(tiny_folder, tmp_path / "run", **own, max_steps=1, max_completion_length=6)
    with pytest.raises(ValueError, match=r"`sft_steps` learns worked answers, and `dataset` .* has rows with neither"):
        main(given)
    assert main([*given, "--sft_steps", "0"]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["after"]["accuracy"] == 0.0 and summary["after"]["problems"] == 2
    (logged, *_) = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(logged)["rewards/code/mean"] == 0.0


def test_full_fine_tuning_saves_a_model(tiny_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    assert main(words(tiny_folder, output, lora_r=0, preset="dr_grpo", max_steps=1)) == 0
    AutoModelForCausalLM.from_pretrained(output / "model")


def test_one_process_writes_for_all(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GRPOExtTrainer, "is_world_process_zero", lambda self: False)
    assert main(words(tiny_folder, tmp_path / "run", max_steps=1)) == 0
    assert not {"summary.json", "learning_curve.png", "adapter"} & {path.name for path in (tmp_path / "run").iterdir()}


def test_unwritable_folder_is_found_before_the_model_loads(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="output_dir"):
        main(words(tmp_path / "no model", tmp_path / "file" / "run"))


def test_missing_model_folder(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=re.escape(str(tmp_path / "none"))):
        main(words(tmp_path / "none", tmp_path / "run"))


@pytest.mark.slow
def test_ten_steps_on_real_gsm8k_with_the_real_model(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRPO_EXT_DATA", str(data_dir))
    output = tmp_path / "run"
    config = ROOT / "recipes" / "gsm8k" / "smollm2_cpu.yaml"
    assert main(["--config", str(config), "--output_dir", str(output), "--eval_size", "8"]) == 0
    summary = json.loads((output / "summary.json").read_text())
    assert (summary["steps"], summary["dataset"]) == (10, "gsm8k")
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "reward" in row]
    assert len(steps) == 10
    assert all(row["grad_norm"] is not None and row["kl"] is not None for row in steps)
    assert any(row["grad_norm"] > 0 for row in steps)
