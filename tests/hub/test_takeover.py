"""`--push_to_hub` of a recipe: one upload at the end instead of Trainer's, seen to work before the run."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from finished_runs import USER

from fake_hub import OWNER, TOKEN, FakeHub, Fault
from grpo_ext.__main__ import main as command
from grpo_ext.config import GRPOExtConfig
from grpo_ext.hub import take_over
from grpo_ext.recipes.gsm8k import main

REPO = f"{OWNER}/tiny-run"


def config(folder: Path, **fields: Any) -> GRPOExtConfig:
    given = {"push_to_hub": True, "hub_token": TOKEN, **fields}
    return GRPOExtConfig(output_dir=str(folder / "tiny-run"), use_cpu=True, bf16=False, report_to="none", **given)


def test_trainers_own_uploads_are_switched_off(
    hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = config(tmp_path, hub_private_repo=True, hub_revision="trial", hub_strategy="end")
    target = take_over(given)
    assert target is not None
    assert (target.repo_id, target.token, target.private, target.revision) == ("tiny-run", TOKEN, True, "trial")
    assert given.push_to_hub is False and given.hub_token is None
    assert TOKEN not in repr(target)
    assert "Upload: to 'tiny-run' when the run is finished" in capsys.readouterr().out
    assert hub.asked == ["whoami"]
    assert take_over(given) is None


@pytest.mark.parametrize(
    ("fields", "error", "said"),
    [
        ({"hub_strategy": "all_checkpoints"}, ValueError, "`hub_strategy` 'all_checkpoints' asks for uploads"),
        ({"hub_strategy": "checkpoint"}, ValueError, "`hub_strategy` 'checkpoint' asks for uploads"),
        ({"hub_always_push": True}, ValueError, "`hub_always_push` asks for uploads"),
        ({"hub_model_id": "a b"}, ValueError, "`repo_id` is 'a b', which the hub does not take"),
        ({"hub_token": None}, OSError, "`push_to_hub` needs a token of the hub; log in with `hf auth login`"),
        ({"hub_token": "hf_" + "x" * 30}, OSError, "`push_to_hub` cannot work: the hub does not accept the token"),
    ],
)
def test_what_cannot_work_is_said_before_the_run(
    hub: FakeHub, tmp_path: Path, fields: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        take_over(config(tmp_path, **fields))


def test_a_hub_that_is_away_stops_no_run(hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hub.faults.append(Fault("whoami", 503, times=-1))
    assert take_over(config(tmp_path)) is not None
    assert "The run goes on, and what it uploads is kept until the hub takes it." in capsys.readouterr().out


def words(base: Path, output: Path, **more: object) -> list[str]:
    options = {
        "model_name_or_path": base,
        "output_dir": output,
        "dataset": "arithmetic",
        "dtype": "float32",
        "bf16": "false",
        "max_steps": 2,
        "save_steps": 1,
        "per_device_train_batch_size": 4,
        "num_generations": 4,
        "max_completion_length": 8,
        "train_size": 16,
        "eval_size": 4,
        "gradient_checkpointing": "false",
        "push_to_hub": "true",
        "hub_token": TOKEN,
        **more,
    }
    return [word for key, value in options.items() for word in (f"--{key}", str(value))]


def test_a_recipe_uploads_once_and_later_where_that_fails(
    hub: FakeHub,
    base_folder: Path,
    tmp_path: Path,
    waits: list[float],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hub.faults.append(Fault("commit", 503, times=-1))
    output = tmp_path / "tiny-run"
    with pytest.raises(OSError, match=r"The hub answered 503.*, 5 times; everything is kept in .*to_push, and `grpo-"):
        main(words(base_folder, output))
    # The run itself lost nothing, and the token is nowhere in it
    summary = json.loads((output / "summary.json").read_text())
    assert summary["after"] is not None and (output / "adapter" / "adapter_model.safetensors").is_file()
    assert all(TOKEN.encode() not in path.read_bytes() for path in output.rglob("*") if path.is_file())
    arguments = torch.load(output / "checkpoint-1" / "training_args.bin", weights_only=False)
    assert arguments.hub_token is None and arguments.push_to_hub is False
    assert hub.commits == []

    hub.faults.clear()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert command(["push", str(output)]) == 0
    assert [row["repo"] for row in hub.commits] == [REPO]
    assert not any("checkpoint" in path or path.endswith((".bin", ".pt")) for path in hub.files[REPO])
    weights = (output / "adapter" / "adapter_model.safetensors").read_bytes()
    assert hub.files[REPO]["adapter_model.safetensors"] == weights
    everything = b"\0".join([*(body for _, body in hub.seen), *hub.files[REPO].values()])
    for word in (TOKEN, USER, str(tmp_path), str(base_folder), str(Path.cwd()), str(Path.home())):
        assert word.encode() not in everything, word
    assert "Uploaded: " in capsys.readouterr().out


def test_interrupted_runs_and_older_weights_do_not_mix(run: Path) -> None:
    for key, value in (("interrupted", True), ("stopped_by", "kl_drift")):
        summary = json.loads((run / "summary.json").read_text()) | {"interrupted": False, key: value}
        (run / "summary.json").write_text(json.dumps(summary))
        assert command(["push", str(run), "--dry_run"]) == 2
