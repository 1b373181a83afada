"""Nothing that a run writes or says holds a secret of its user."""

import logging
from pathlib import Path

import pytest
from ways_in import small

from grpo_ext import __main__
from grpo_ext.cli import parse
from grpo_ext.hub import take_over, without_token
from grpo_ext.recipes import evaluate, gsm8k
from grpo_ext.recipes.rlhf_run import BASE, RLHFArguments

SECRETS = {
    "HF_TOKEN": "hf_" + "Environment" * 3,
    "WANDB_API_KEY": "wandb-key-0123456789",
    "OPENAI_API_KEY": "judge-key-0123456789",
    "VLLM_API_KEY": "vllm-key-0123456789",
    "AWS_SECRET_ACCESS_KEY": "aws-key-0123456789",
}
GIVEN = "hf_" + "CommandLine" * 3
# Of a hub whose tokens look otherwise
OTHER = "otherwise-0123456789"


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    return [value.encode() for value in (*SECRETS.values(), GIVEN)]


def holding(folder: Path, secrets: list[bytes]) -> list[str]:
    """Files below a folder with a secret in them."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    return [path.name for path in files if any(secret in path.read_bytes() for secret in secrets)]


def test_a_run_and_its_report_hold_no_secret(
    base: Path,
    tmp_path: Path,
    secrets: list[bytes],
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = tmp_path / "run"
    with caplog.at_level(logging.DEBUG):
        given = [*small(base, run), "--dataset", "arithmetic", "--hub-token", GIVEN]
        assert gsm8k.main([*given, "--save_strategy", "steps", "--save_steps", "1"]) == 0
        assert __main__.main(["report", str(run), "--png"]) == 0
    names = {path.name for path in run.rglob("*")}
    # The pickle of the arguments is transformers', and would hold the token
    assert {"summary.json", "metrics.jsonl", "training_args.bin", "report.html"} <= names
    assert not holding(tmp_path, secrets)
    said = "".join(capfd.readouterr()) + caplog.text
    assert not [secret for secret in secrets if secret.decode() in said]


def test_an_evaluation_holds_none(base: Path, tmp_path: Path, secrets: list[bytes]) -> None:
    out = tmp_path / "evaluation"
    words = ["--task", "arithmetic", "--problems", "1", "--max_completion_length", "2", "--dtype", "float32"]
    assert evaluate.main([str(base), *words, "--output_dir", str(out)]) == 0
    assert not holding(out, secrets)


@pytest.mark.parametrize(
    "words",
    [
        ["--hub_token", OTHER],
        [f"--hub_token={OTHER}"],
        ["--hub-token", OTHER],
        [f"--hub-token={OTHER}"],
        ["--hub_model_id", GIVEN],
        ["--system_prompt", f"say {GIVEN}"],
        ["--run_name", SECRETS["WANDB_API_KEY"]],
    ],
)
def test_a_command_line_is_noted_without_them(words: list[str]) -> None:
    noted = without_token(["--seed", "1", *words, "--push_to_hub"], SECRETS)
    assert not any(secret in word for word in noted for secret in (GIVEN, OTHER, *SECRETS.values()))
    assert noted[:2] == ["--seed", "1"] and noted[-1] == "--push_to_hub"


def test_a_token_that_is_not_used_is_not_kept(tmp_path: Path) -> None:
    _, config = parse(RLHFArguments, ["--output_dir", str(tmp_path), "--hub_token", GIVEN], BASE)
    assert config.hub_token == GIVEN
    assert take_over(config) is None and config.hub_token is None
