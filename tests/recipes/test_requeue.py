"""A recipe on a machine that is taken away: one command starts the run, goes on with it and ends it."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from tiny_recipe import words

from grpo_ext import GRPOExtTrainer
from grpo_ext.recipes.gsm8k import main


def test_sigterm_gives_the_code_to_start_the_same_command_again(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    more = {"max_steps": 3, "max_completion_length": 4, "save_strategy": "no", "resume_from_checkpoint": "last"}
    run = words(tiny_folder, output, **more)
    output.mkdir()
    (output / "metrics.jsonl").write_text('{"step": 1, "of": "an earlier run without a checkpoint"}\n')
    step = GRPOExtTrainer.training_step

    def terminated(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 1:
            signal.raise_signal(signal.SIGTERM)
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(GRPOExtTrainer, "training_step", terminated)
        assert main(run) == 75
    assert "Stopped at step 2 by SIGTERM." in capsys.readouterr().out
    assert json.loads((output / "summary.json").read_text())["interrupted"]
    assert main(run) == 0
    summary = json.loads((output / "summary.json").read_text())
    assert (summary["interrupted"], summary["steps"]) == (False, 3)
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 3]
    assert all("of" not in row for row in rows)
