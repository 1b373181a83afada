"""Each example runs, tiny-sized, and shows what it says."""

import runpy
from pathlib import Path
from typing import Any

import pytest

from grpo_ext.models import tiny_policy

EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "examples").glob("*.py"))
TINY = {
    "use_cpu": True,
    "bf16": False,
    "per_device_train_batch_size": 8,
    "num_generations": 4,
    "max_completion_length": 8,
    "max_steps": 3,
    "disable_tqdm": True,
    "save_strategy": "no",
    "optim": "sgd",
    "learning_rate": 0.5,
}


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tiny")
    model, tokenizer = tiny_policy(seed=0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def run(tiny_folder: str, tmp_path: Path) -> Any:
    def go(name: str, **options: Any) -> Any:
        path = next(path for path in EXAMPLES if path.stem == name)
        return runpy.run_path(str(path))["main"](tiny_folder, 32, output_dir=str(tmp_path), **{**TINY, **options})

    return go


def test_there_is_a_test_for_each() -> None:
    assert [path.stem for path in EXAMPLES] == ["adaptive_kl", "group_by_topic", "rank_advantages"]
    assert all(len(path.read_text().splitlines()) <= 60 for path in EXAMPLES)


def test_group_by_topic(run: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from grpo_ext import GRPOExtTrainer

    seen: list[tuple[list[str], list[int]]] = []
    original = GRPOExtTrainer._generate_and_score_completions

    def watched(self: Any, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = original(self, inputs)
        seen.append(([row["topic"] for row in inputs], output["group_ids"].tolist()))
        return output

    monkeypatch.setattr(GRPOExtTrainer, "_generate_and_score_completions", watched)
    trainer = run("group_by_topic", sft_steps=1, per_device_train_batch_size=64)
    assert trainer.state.global_step == 3
    for topics, groups in seen:
        # More prompts than topics, and a group is a topic
        assert len(set(groups)) == len(set(topics)) < len(topics) // 4
        assert len(set(zip(topics, groups, strict=True))) == len(set(topics))
    assert "Rows that teach: [" in capsys.readouterr().out


def test_rank_advantages(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = run("rank_advantages")
    printed = capsys.readouterr().out
    assert "mean  [0.5, 0.5, 0.5, -1.5]" in printed
    assert "rank  [2.0, 0.67, -0.67, -2.0]" in printed
    assert max(abs(value) for value in trainer._logs["advantages"]) <= 2.0
    nearness = runpy.run_path(str(EXAMPLES[2]))["nearness"]
    assert nearness(["it is 7", "none", "#### 1,000"], ["5", "5", "5"]) == [-2.0, -1e6, -995.0]


def test_adaptive_kl(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = run("adaptive_kl", sft_steps=1)
    logged = [(row["kl"], row["beta"]) for row in trainer.state.log_history if "kl" in row]
    beta = 0.04
    for kl, following in logged:
        beta = beta / 2 if kl < 0.02 / 1.5 else beta * 2 if kl > 0.02 * 1.5 else beta
        assert following == pytest.approx(beta, rel=1e-6)
    assert capsys.readouterr().out.count("beta of the next step") == 3
