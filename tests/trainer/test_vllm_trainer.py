"""The trainer with adapters swapped into vLLM, against a stand-in for its server; and what is refused."""

import os
import subprocess
import sys
from collections import Counter
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_runs import QUIET, early_letters, largest_difference, make, policy, prompts, weights

from fake_vllm import fakes
from grpo_ext import GRPOExtConfig, GRPOExtTrainer, compat
from grpo_ext.rollouts.strategies import GroupSize
from grpo_ext.rollouts.vllm.engine import EngineOptions, EngineRollouts
from grpo_ext.rollouts.vllm.requests import GroupSearch, Sampling
from grpo_ext.rollouts.vllm.servers import ServerRollouts
from grpo_ext.trainer.host import UnslothTrainer

SERVED: dict[str, Any] = {"use_vllm": True, "vllm_sync": "adapter", "learning_rate": 0.5, "max_steps": 3}


def test_each_step_is_generated_by_its_own_adapter(tiny_folder: Path, tmp_path: Path) -> None:
    root = {"root": str(tiny_folder), "vary": True}
    with fakes(root, {**root, "seconds": 0.01}) as servers:
        urls = [server.url for server in servers]
        # The stand-in's log-probabilities mean nothing
        fields = {"temperature": 0.9, "top_k": None, "vllm_importance_sampling_correction": False, **SERVED}
        trainer = make(tiny_folder, tmp_path, lora=True, vllm_server_urls=urls, **fields)
        assert isinstance(trainer.vllm_generation, ServerRollouts)
        seen: list[dict[str, torch.Tensor]] = []
        sync = trainer.vllm_generation.sync_weights
        trainer.vllm_generation.sync_weights = lambda: (sync(), seen.append(weights(trainer.model)))
        trainer.train()
        assert len(seen) == 3
        for server in servers:
            # One more was loaded to see whether it can be
            assert len(server.weights) == 4 and list(server.adapters) == [trainer.vllm_generation.adapter.name]
            for sent, held in zip(server.weights[1:], seen, strict=True):
                for name, weight in held.items():
                    assert torch.equal(sent[name.replace(".default", "")], weight), name
        assert all(largest_difference(*pair) > 1e-3 for pair in pairwise(seen))
        asked = [body for server in servers for body in server.bodies if body["prompt"] != [1, 2, 3]]
        # Two groups a step, each prompt once for its four completions
        assert len(asked) == 6 and {body["n"] for body in asked} == {4}
        assert {(body["temperature"], body["top_k"]) for body in asked} == {(0.9, 0)}
        assert len({body["model"] for body in asked}) == 3


@pytest.mark.slow
def test_each_process_sends_its_own_rows(tiny_folder: Path, tmp_path: Path) -> None:
    here = Path(__file__).parent
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    paths = [here.parents[1], here, os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "CUDA_VISIBLE_DEVICES": ""}
    with fakes({"root": str(tiny_folder), "vary": True}) as (server,):
        command += [str(here / "vllm_processes.py"), str(tiny_folder), str(tmp_path), server.url]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stderr[-4000:]
        ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
        sent = [body for body in server.bodies if body["prompt"] != [1, 2, 3]]
        # Two groups of four on each process and step, and each group sent once, by its own process
        assert Counter(tuple(body["prompt"]) for body in sent) == Counter(
            tuple(prompt) for rank in ranks for prompt in rank["asked"][::4]
        )
        assert len(sent) == 8 and {body["n"] for body in sent} == {4}
        # One adapter for both: that of the check, and one for each step
        assert len(server.weights) == 3 and len({body["model"] for body in sent}) == 2
    assert largest_difference(ranks[0]["weights"], ranks[1]["weights"]) == 0.0


def test_beams_come_from_the_servers(tiny_folder: Path, tmp_path: Path) -> None:
    fields = {"group_generation": "beam", "vllm_importance_sampling_correction": False, "num_beams": 5}
    with fakes({"root": str(tiny_folder)}) as servers:
        trainer = make(tiny_folder, tmp_path, lora=True, vllm_server_urls=[servers[0].url], **SERVED, **fields)
        trainer.train()
        asked = [body for body in servers[0].bodies if body["prompt"] != [1, 2, 3]]
        assert len(asked) == 6 and all(body["use_beam_search"] and body["n"] == 5 for body in asked)


def test_without_the_option_trl_makes_its_own(tiny_folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    stock = SimpleNamespace(sync_weights=None)
    made = []

    def own(*args: Any, **kwargs: Any) -> Any:
        made.append(kwargs)
        return stock

    names = compat.GRPOTrainer.__init__.__globals__
    monkeypatch.setitem(names, "VLLMGeneration", own)
    trainer = make(tiny_folder, tmp_path, use_vllm=True)
    assert trainer.vllm_generation is stock and made[0]["mode"] == "colocate"
    assert names["VLLMGeneration"] is own


@pytest.mark.parametrize(("told", "fits"), [(20, True), (9, False), (-1, True)])
def test_an_engine_must_tell_as_many_log_probabilities_as_beams_need(
    told: int, fits: bool, tiny_folder: Path, tmp_path: Path
) -> None:
    model_config = SimpleNamespace(max_logprobs=told, max_model_len=64)
    engine = SimpleNamespace(llm_engine=SimpleNamespace(model_config=model_config))
    search = GroupSearch("beam", GroupSize(4, beams=5))
    options = EngineOptions(str(tiny_folder), torch.float32)
    with nullcontext() if fits else pytest.raises(ValueError, match="tells 9 log-probabilities a token, and 5 beams"):
        EngineRollouts(policy(tiny_folder, lora=True), Sampling(), search, [1], options, engine=engine)


def test_a_changed_field_is_told_whatever_its_values_are() -> None:
    trainer = SimpleNamespace(args=SimpleNamespace(top_k=-1, eval_steps=5, reward_weights=[1.0]))
    read_back = UnslothTrainer._read_back
    read_back(trainer, {"top_k": None, "eval_steps": None, "reward_weights": [1.0]})
    assert trainer.args.top_k is None and trainer.args.eval_steps is None
    with pytest.raises(ValueError, match=r"`reward_weights` is \[2.0\], but Unsloth made it \[1.0\]"):
        read_back(trainer, {"reward_weights": [2.0]})


def test_merging_into_4bit_weights_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    model = policy(tiny_folder, lora=True)
    model.get_base_model().is_loaded_in_4bit = True
    config = GRPOExtConfig(output_dir=str(tmp_path), use_vllm=True, **QUIET)
    with pytest.raises(ValueError, match=r"4-bit, and TRL's sync would merge .* set vllm_sync='adapter'"):
        GRPOExtTrainer(model=model, reward_funcs=early_letters, args=config, train_dataset=prompts())


@pytest.mark.parametrize("lora", [False, True])
def test_a_policy_that_vllm_cannot_serve_is_refused(tiny_folder: Path, tmp_path: Path, lora: bool) -> None:
    with fakes({"root": "another/model"}) as servers:
        said = "speaks another/model" if lora else "the policy has no LoRA adapter: all its weights are trained; leave"
        with pytest.raises(ValueError, match=said):
            make(tiny_folder, tmp_path, lora=lora, vllm_server_urls=[servers[0].url], **SERVED)


def test_a_missing_vllm_is_said(tiny_folder: Path, tmp_path: Path) -> None:
    # These tests run where vLLM is not installed
    with pytest.raises(ImportError, match="needs vLLM in this environment, or `vllm_server_urls`"):
        make(tiny_folder, tmp_path, lora=True, **SERVED)


REFUSED = [
    ({"vllm_sync": "adapter"}, "`use_vllm` is off"),
    ({"vllm_server_urls": ["http://a"]}, "`vllm_server_urls` is set, but only vllm_sync='adapter'"),
    ({"use_vllm": True, "vllm_base_model": "x"}, "`vllm_base_model` is set, but only vllm_sync='adapter'"),
    ({"use_vllm": True, "group_generation": "beam"}, "TRL's own vLLM path samples only"),
    ({**SERVED, "group_generation": "beam"}, "beams are no samples, so `vllm_importance_sampling_correction`"),
    ({**SERVED, "group_generation": "diverse_beam", "num_beam_groups": 2}, "no groups of beams that avoid"),
    ({**SERVED, "group_generation": "stochastic_beam", "scale_rewards": "none"}, "no Gumbel noise"),
    ({**SERVED, "vllm_mode": "server"}, "whose protocol is TRL's own"),
    ({**SERVED, "vllm_server_urls": []}, "`vllm_server_urls` is empty"),
    ({**SERVED, "vllm_server_urls": ["node1:8000"]}, "has 'node1:8000'; an address begins with http://"),
    ({**SERVED, "vllm_server_urls": ["http://a", "http://a"]}, "names a server twice"),
    ({**SERVED, "vllm_request_timeout": 0.0}, "`vllm_request_timeout` is 0.0"),
    ({**SERVED, "vllm_tensor_parallel_size": 2}, "start `vllm serve --tensor-parallel-size`"),
    ({**SERVED, "vllm_enable_sleep_mode": True}, "throws the engine's weights away"),
    ({**SERVED, "generation_kwargs": {"n": 2}}, "`generation_kwargs` has 'n'"),
]


@pytest.mark.parametrize(("fields", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_what_cannot_work_is_refused(tmp_path: Path, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as caught:
        GRPOExtConfig(output_dir=str(tmp_path), **{**QUIET, **fields})
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("top_p", 0.9), ("top_k", 5), ("min_p", 0.1), ("repetition_penalty", 1.2), ("generation_kwargs", {"seed": 1})],
)
def test_what_a_search_passes_over_is_refused(tmp_path: Path, name: str, value: Any) -> None:
    fields = {**QUIET, **SERVED, "group_generation": "beam", "vllm_importance_sampling_correction": False}
    GRPOExtConfig(output_dir=str(tmp_path), **fields)
    with pytest.raises(ValueError, match=f"would pass over `{name}`"):
        GRPOExtConfig(output_dir=str(tmp_path), **fields, **{name: value})
