"""A recipe that a finding stops: its exit code, what it leaves, and how it goes on."""

import json
from pathlib import Path

import pytest
from tiny_recipe import words

from grpo_ext.recipes.gsm8k import main


def test_a_finding_ends_the_recipe_with_its_own_code(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    run = words(
        tiny_folder,
        output,
        max_steps=4,
        max_completion_length=4,
        save_strategy="no",
        # A random policy is never right, so every group is dead
        stop_on="dead_groups,kl_drift",
        health="dead_groups.window=2",
    )
    run += ["truncated_completions=off"]
    assert main(run) == 3
    summary = json.loads((output / "summary.json").read_text())
    assert (summary["stopped_by"], summary["steps"], summary["after"]) == ("dead_groups", 2, None)
    (row,) = [json.loads(line) for line in (output / "health.jsonl").read_text().splitlines()]
    assert (row["step"], row["detector"], row["severity"]) == (2, "dead_groups", "critical")
    assert "samples=0" in capsys.readouterr().err

    assert main([*run, "--resume_from_checkpoint", str(output / "checkpoint-2")]) == 0
    summary = json.loads((output / "summary.json").read_text())
    assert (summary["stopped_by"], summary["steps"]) == (None, 4)
    assert len((output / "health.jsonl").read_text().splitlines()) == 1


def test_a_wrong_detector_is_found_before_the_model_loads(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="did you mean 'dead_groups'"):
        main(["--model_name_or_path", "nowhere", "--output_dir", str(tmp_path), "--stop_on", "dead_group"])
