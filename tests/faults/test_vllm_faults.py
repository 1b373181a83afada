"""vLLM servers that go away and come back, and those that do not; against a stand-in."""

import os
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from table import Row, by_its_rows
from tiny_runs import largest_difference, make, weights
from vllm_turns import with_tool

from fake_vllm import FakeVLLM, fakes
from grpo_ext import GRPOExtTrainer, compat
from grpo_ext.faults import RunStopped
from grpo_ext.rollouts.vllm.engine import EngineFailed, EngineRollouts
from grpo_ext.rollouts.vllm.requests import Request
from grpo_ext.trainer import vllm

HERE = Path(__file__).resolve().parent
PROBE = [1, 2, 3]


def served(folder: Path, out: Path, urls: list[str], **fields: Any) -> GRPOExtTrainer:
    # The stand-in's log-probabilities mean nothing
    plain = {"use_vllm": True, "vllm_sync": "adapter", "vllm_importance_sampling_correction": False}
    run = {"max_steps": 3, "learning_rate": 0.5, "vllm_server_urls": urls}
    trainer = make(folder, out, lora=True, **plain, **run, **fields)
    for server in trainer.vllm_generation.fleet.servers:
        server.first_wait = 0.02
    return trainer


def asked(server: FakeVLLM) -> list[dict[str, Any]]:
    return [body for body in server.bodies if body["prompt"] != PROBE]


@by_its_rows
def test_a_server_that_is_away(row: Row, tiny_folder: Path, tmp_path: Path) -> None:
    fields = {"root": str(tiny_folder), "vary": True}
    several = [{}] if row.name == "one server" else []
    with fakes(*({**fields, **more} for more in [{}, *several])) as servers:
        trainer = served(tiny_folder, tmp_path, [server.url for server in servers], vllm_server_timeout=60.0)
        first = servers[0]
        inner, back = trainer._generate_and_score_completions, []
        later = threading.Timer(0.3, lambda: back.append(FakeVLLM(first.port, **fields)))

        def generate(inputs: Any) -> Any:
            if trainer.state.global_step == 1:
                first.stop()
                later.start()
            return inner(inputs)

        trainer._generate_and_score_completions = generate
        trainer.train()
        assert trainer.state.global_step == 3
        later.join()
        (returned,) = back
        try:
            sent = asked(first) + asked(returned) + [body for server in servers[1:] for body in asked(server)]
            # Two groups a step, by the adapter of that step
            assert len(sent) == 6 and len({body["model"] for body in sent}) == 3
            if row.name == "all servers":
                # It knew no adapter when it came back, and got the one of the step that waited
                assert len(asked(returned)) == 4
                newest = {name.replace(".default", ""): value for name, value in weights(trainer.model).items()}
                assert returned.weights[0].keys() == newest.keys()
        finally:
            # The list is stopped at the end, and the first one has been
            servers[0] = returned


@by_its_rows
def test_vllm_that_is_gone_stops(row: Row, tiny_folder: Path, tmp_path: Path) -> None:
    with fakes({"root": str(tiny_folder), "vary": True}) as servers:
        trainer = served(tiny_folder, tmp_path, [servers[0].url], vllm_server_timeout=0.2, vllm_request_timeout=5.0)
        inner = trainer._generate_and_score_completions

        def generate(inputs: Any) -> Any:
            if trainer.state.global_step == 2:
                if row.name == "engine":
                    trainer.vllm_generation.generate = dead
                if row.name == "adapter":
                    trainer.vllm_generation.folder.path = tmp_path / "gone"
                servers[0].answer = "close"
            return inner(inputs)

        trainer._generate_and_score_completions = generate
        reasons = {"engine": "the engine failed: CUDA", "adapter": "the adapter could not be written in .*gone: "}
        reason = reasons.get(row.name, "1 of 1 vLLM servers did not come up within")
        with pytest.raises(RunStopped, match=rf"^Step 3: vLLM made no completions \({reason}") as caught:
            trainer.train()
        assert "Stopped after step 2, which was saved." in caught.value.__notes__[0]
        before = weights(trainer.model)
        servers[0].answer = "right"
        again = served(tiny_folder, tmp_path, [servers[0].url])
        again.train(resume_from_checkpoint="last")
        assert again.state.global_step == 3
        # What it generated with is the adapter of the checkpoint
        sent = servers[0].weights[-1]
        assert largest_difference({k.replace(".default", ""): v for k, v in before.items()}, sent) == 0.0


def test_turns_with_a_tool_are_one_generation(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gathered: list[Any] = []
    monkeypatch.setattr(vllm, "gather_object", lambda found: gathered.append(found) or found)
    with fakes({"root": str(tiny_folder), "vary": True, "window": 400}) as servers:
        trainer = with_tool(tiny_folder, tmp_path, servers[0].url, calls=True, max_steps=1)
        trainer.train()
        # Two groups, and then the rows that called; the number of turns is that of each process alone
        assert {body["n"] for body in asked(servers[0])} == {4, 2} and gathered == [[None]]


@pytest.mark.slow
def test_processes_with_other_numbers_of_turns(tiny_folder: Path, tmp_path: Path) -> None:
    paths = [HERE.parents[1], HERE.parent, HERE, HERE.parent / "trainer", os.environ.get("PYTHONPATH", "")]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    with fakes({"root": str(tiny_folder), "vary": True, "window": 400}) as servers:
        done = subprocess.run(
            [*command, str(HERE / "vllm_turns.py"), str(tiny_folder), str(tmp_path), servers[0].url],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-4000:]
    ranks: list[dict[str, Any]] = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    assert [rank["turns"] for rank in ranks] == [[0, 0, 1, 1], [0, 1]]
    for rank in ranks:
        assert rank["stopped"].startswith("Step 2: vLLM made no completions (no server is up); start it again")
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-1"]


def dead(*args: Any, **kwargs: Any) -> None:
    raise EngineFailed("the engine failed: CUDA error: unspecified launch failure")


def test_an_engine_in_this_process_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    rollouts = object.__new__(EngineRollouts)
    rollouts._lora, rollouts.ends = SimpleNamespace(), [0]
    rollouts.sampling = SimpleNamespace(fields=lambda n, tokens: {})
    errors = iter([RuntimeError("CUDA error"), torch.OutOfMemoryError("out of memory")])

    def generate(*args: Any, **kwargs: Any) -> None:
        raise next(errors)

    rollouts.llm = SimpleNamespace(generate=generate)
    stand_in = ModuleType("vllm")
    stand_in.SamplingParams = lambda **fields: fields
    monkeypatch.setitem(sys.modules, "vllm", stand_in)
    with pytest.raises(EngineFailed, match="the engine failed: CUDA error"):
        rollouts.sample([Request((1,), 1, 1, 0)])
    with pytest.raises(torch.OutOfMemoryError):
        rollouts.sample([Request((1,), 1, 1, 0)])


def test_the_errors_of_an_engine_in_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "vllm.v1.engine.exceptions", raising=False)
    assert compat.vllm_errors() == ()
    stand_in = ModuleType("vllm.v1.engine.exceptions")
    stand_in.EngineDeadError, stand_in.EngineGenerateError = KeyError, IndexError
    monkeypatch.setitem(sys.modules, "vllm.v1.engine.exceptions", stand_in)
    assert compat.vllm_errors() == (KeyError, IndexError)
