"""Each example runs, tiny-sized, and shows what it says."""

import json
import runpy
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from fake_vllm import fakes
from grpo_ext.models import tiny_policy
from grpo_ext.ops.aggregation import AGGREGATIONS, Window
from tool_chat import calling, tool_tokenizer

pytestmark = pytest.mark.slow

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


# With Unsloth, in a process of its own: test_unsloth_example.py
ELSEWHERE = {"unsloth_lora"}


def test_there_is_a_test_for_each() -> None:
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {path.stem for path in EXAMPLES} - ELSEWHERE <= tested
    assert all(len(path.read_text().splitlines()) < 60 for path in EXAMPLES)


def test_minimal(run: Any) -> None:
    trainer = run("minimal")
    assert trainer.state.global_step == 3 and trainer.args.loss_type == "dr_grpo"


def test_stock_script(run: Any, tiny_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = run("stock_script", seed=1)
    assert type(ours).__name__ == "GRPOExtTrainer" and any(row.get("reward", 0) > 1 for row in ours.state.log_history)
    # The one import, changed back
    import trl

    import grpo_ext

    monkeypatch.setitem(vars(grpo_ext), "GRPOExtTrainer", trl.GRPOTrainer)
    monkeypatch.setitem(vars(grpo_ext), "GRPOExtConfig", trl.GRPOConfig)
    theirs = run("stock_script", seed=1)
    assert type(theirs) is trl.GRPOTrainer
    same = dict(ours.model.named_parameters())
    moved = 0.0
    for name, weight in theirs.model.named_parameters():
        assert (weight - same[name]).abs().max() <= 1e-6, name
        moved = max(moved, weight.abs().max().item() if "lora_B" in name else 0.0)
    assert moved > 1e-3


def test_own_reward(run: Any) -> None:
    trainer = run("own_reward")
    logged = trainer.state.log_history[0]
    assert {"rewards/correct_final/mean", "rewards/close/mean"} <= logged.keys()
    assert trainer.reward_weights.tolist() == pytest.approx([1.0, 0.2])
    close = runpy.run_path(str(Path(EXAMPLES[0]).with_name("own_reward.py")))["close"]
    assert close(["it is 7", "none", "#### 5"], ["5", "5", "5"]) == [pytest.approx(1 / 3), None, 1.0]


def test_own_aggregation(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import grpo_ext.config

    monkeypatch.delitem(AGGREGATIONS, "seq_mean_token_root", raising=False)
    names = grpo_ext.config.GRPOExtConfig.__dataclass_fields__["aggregation"].metadata["choices"]
    # Here the config has read the table long ago
    names.append("seq_mean_token_root")
    try:
        trainer = run("own_aggregation")
        assert trainer.args.objective().aggregation == "seq_mean_token_root" and trainer.args.uses_own_objective
        losses, mask = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 9.0]]), torch.tensor([[1, 1, 1], [1, 1, 0]])
        window = Window(rows=4, tokens=10, parts=2, group_size=4, max_completion_length=3)
        found = AGGREGATIONS["seq_mean_token_root"](losses, mask, window)
        assert found.item() == pytest.approx((6 / 3**0.5 + 9 / 2**0.5) / 4)
    finally:
        names.remove("seq_mean_token_root")
        AGGREGATIONS.pop("seq_mean_token_root", None)


def test_compare_presets(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    found = run("compare_presets", logging_steps=1)
    assert list(found) == ["dr_grpo", "gspo", "cispo"] and all(len(rewards) == 3 for rewards in found.values())
    # The first completions come from the same policy and seed
    assert len({rewards[0] for rewards in found.values()}) == 1
    assert capsys.readouterr().out.count("last three") == 3


@pytest.fixture
def judge_url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An endpoint that gives each answer the number of its different letters, up to ten."""

    class Judge(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][-1]["content"]
            answer = asked.partition("Answer: ")[2].rpartition("\nEnd with")[0]
            reply = {"choices": [{"message": {"content": f"Score: {min(10, len(set(answer)))}"}}], "usage": {}}
            body = json.dumps(reply).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            """Say nothing."""

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", "a key")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Judge)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def test_judge(run: Any, judge_url: str, tmp_path: Path) -> None:
    trainer = run("judge", url=judge_url, judge="a judge")
    logged = [row for row in trainer.state.log_history if "reward" in row]
    assert all(0.1 < row["rewards/judge/mean"] <= 1.0 for row in logged)
    assert len(list((tmp_path / "verdicts").iterdir())) >= 8


def test_environment(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import grpo_ext

    # A random policy never calls a tool, and its chat template knows none
    monkeypatch.setitem(vars(grpo_ext), "GRPOExtTrainer", calling(grpo_ext.GRPOExtTrainer, "guess", {"number": 3}))
    load = grpo_ext.load_policy
    monkeypatch.setitem(vars(grpo_ext), "load_policy", lambda *a, **k: (load(*a, **k)[0], tool_tokenizer()))
    trainer = run("environment", max_completion_length=96, num_generations=8, logging_steps=1)
    logged = [row for row in trainer.state.log_history if "reward" in row]
    assert all(row["tools/call_frequency"] >= 0.5 and row["tools/failure_frequency"] == 0.0 for row in logged)
    game = runpy.run_path(str(Path(EXAMPLES[0]).with_name("environment.py")))["Guessing"]()
    game.reset(secret=4, prompt=[])
    assert [game.guess(number) for number in (2, 7, 4)] == ["higher", "lower", "found"]
    assert game.get_reward() == pytest.approx(0.8)
    game.reset(secret=4)
    assert game.get_reward() == 0.0


def test_served_vllm(run: Any, tiny_folder: str) -> None:
    stand_in = {"root": tiny_folder, "vary": True, "window": 512}
    with fakes(stand_in, stand_in) as servers:
        # The stand-in's log-probabilities mean nothing
        fields = {"vllm_importance_sampling_correction": False, "vllm_base_model": tiny_folder}
        trainer = run("served_vllm", urls=[server.url for server in servers], **fields)
        assert trainer.state.global_step == 3
        # One adapter more than steps: the first was loaded to see whether it can be
        assert [len(server.weights) for server in servers] == [4, 4]


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
    nearness = runpy.run_path(str(Path(EXAMPLES[0]).with_name("rank_advantages.py")))["nearness"]
    assert nearness(["it is 7", "none", "#### 1,000"], ["5", "5", "5"]) == [-2.0, -1e6, -995.0]


def test_adaptive_kl(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = run("adaptive_kl", sft_steps=1)
    logged = [(row["kl"], row["beta"]) for row in trainer.state.log_history if "kl" in row]
    beta = 0.04
    for kl, following in logged:
        beta = beta / 2 if kl < 0.02 / 1.5 else beta * 2 if kl > 0.02 * 1.5 else beta
        assert following == pytest.approx(beta, rel=1e-6)
    assert capsys.readouterr().out.count("beta of the next step") == 3
