"""Served rollouts against stand-ins for vLLM: spreading, faults, comebacks, checks before the first step."""

import dataclasses
import logging
import threading
import time
from collections import Counter
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fake_vllm import FakeVLLM, fakes
from grpo_ext.models import tiny_policy
from grpo_ext.rollouts.strategies import GroupSize
from grpo_ext.rollouts.vllm import server
from grpo_ext.rollouts.vllm.adapters import AdapterFolder
from grpo_ext.rollouts.vllm.requests import GroupSearch, Sampling
from grpo_ext.rollouts.vllm.rollouts import Rows
from grpo_ext.rollouts.vllm.servers import ServerOptions, ServerRollouts

OPTIONS = ServerOptions(urls=[], base="elsewhere/tiny", timeout=5.0, patience=5.0, first_wait=0.05)


def rollouts(servers: list[FakeVLLM], rank: int = 4, **fields: Any) -> ServerRollouts:
    model, _ = tiny_policy(lora_r=rank)
    names = {field.name for field in dataclasses.fields(ServerOptions)}
    options = dataclasses.replace(
        OPTIONS, urls=[s.url for s in servers], **{k: v for k, v in fields.items() if k in names}
    )
    search = fields.get("search", GroupSearch())
    sampling = Sampling(
        temperature=0.7, top_k=5, max_tokens=fields.get("max_tokens", 6), extra=fields.get("extra", {})
    )
    return ServerRollouts(model, sampling, search, [1], options, AdapterFolder(dtype=torch.float32))


def rows(groups: int, size: int) -> list[list[int]]:
    """Prompts of different lengths, each of them `size` times."""
    return [[10 + group] * (1 + group % 5) for group in range(groups) for _ in range(size)]


def check_rows(made: Rows, prompts: list[list[int]], longest: int = 6) -> None:
    """Each row's completion is its own prompt's, and a group's come in the order of the choices."""
    assert made[0] == prompts and made[3] is None
    assert made[1] == [[p[0]] * min(len(p), longest) for p in prompts]
    place = 0
    for i, prompt in enumerate(prompts):
        place = place + 1 if i and prompt == prompts[i - 1] else 0
        assert made[2][i] == [[-float(place)]] * len(made[1][i])


def asked(server: FakeVLLM) -> list[tuple[int, ...]]:
    """Prompts that it was asked to complete, without those of the check before the first step."""
    return [tuple(body["prompt"]) for body in server.bodies if body["prompt"] != [1, 2, 3]]


def test_each_prompt_is_sent_once_and_rows_keep_their_order() -> None:
    with fakes({"seconds": 0.02}, {"seconds": 0.02}) as servers:
        made = rollouts(servers, extra={"seed": 7})
        prompts = rows(12, 4)
        check_rows(made.generate(prompts, None, 4), prompts)
        sent = Counter(asked(servers[0]) + asked(servers[1]))
        assert sent == Counter({tuple(p): 1 for p in prompts})
        # Both had work
        assert min(len(asked(server)) for server in servers) >= 3
        body = servers[0].bodies[-1]
        expected = {"n": 4, "temperature": 0.7, "top_k": 5, "seed": 7, "stop_token_ids": [1], "max_tokens": 6}
        assert expected.items() <= body.items()
        assert body["model"] == made.adapter.name and body["add_special_tokens"] is False


def test_later_turns_have_runs_of_any_length() -> None:
    with fakes({}) as servers:
        made = rollouts(servers)
        prompts = [[10], [10, 11], [10, 11], [12], [10]]
        check_rows(made.generate(prompts, None, 1), prompts)
        assert sorted(body["n"] for body in servers[0].bodies[-4:]) == [1, 1, 1, 2]


def test_adapters_replace_each_other_and_carry_the_weights() -> None:
    with fakes({}, {}) as servers:
        made = rollouts(servers)
        first = made.adapter
        with torch.no_grad():
            for name, weight in made.model.named_parameters():
                if "lora_B" in name:
                    weight.fill_(0.25)
        made.sync_weights()
        for server in servers:
            assert list(server.adapters) == [made.adapter.name]
            assert made.adapter.name != first.name and made.adapter.number == first.number + 1
            assert all((w == 0.25).all() for n, w in server.weights[-1].items() if "lora_B" in n)
        assert load_file(f"{made.adapter.path}/adapter_model.safetensors").keys() == servers[0].weights[-1].keys()


def test_a_slow_load_is_called_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "LOADING", 0.1)
    with fakes({"loading": 0.6}) as servers:
        late = r"did not load the adapter within 0\.2 s \(`vllm_request_timeout`"
        with pytest.raises(ConnectionError, match=late):
            rollouts(servers, timeout=0.2, patience=0.1)


@pytest.mark.parametrize("fault", ["close", "error", "garbage", "no ids", "few", "hang"])
def test_a_server_that_fails_loses_no_prompt(fault: str, caplog: pytest.LogCaptureFixture) -> None:
    with fakes({}, {"seconds": 0.01}) as servers, caplog.at_level(logging.WARNING, "grpo_ext"):
        made = rollouts(servers, timeout=0.5, first_wait=60.0)
        servers[0].answer = fault
        prompts = rows(10, 2)
        check_rows(made.generate(prompts, None, 2), prompts)
        assert sorted(set(asked(servers[1]))) == sorted({tuple(p) for p in prompts})
        assert len(asked(servers[1])) == 10
        assert caplog.text.count("taken out") == 1 and servers[0].url in caplog.text


def test_a_server_that_dies_in_the_middle_loses_no_prompt() -> None:
    with fakes({"seconds": 0.02}, {"seconds": 0.02}) as servers:
        made = rollouts(servers, first_wait=60.0)
        servers[0].fail_after = servers[0].answered + 2
        prompts = rows(16, 2)
        check_rows(made.generate(prompts, None, 2), prompts)
        answered = [body["prompt"] for body in servers[0].bodies[3:5]]
        assert len(answered) == 2
        # What the first one answered is not asked again; the rest is, of the other
        assert not {tuple(p) for p in answered} & set(asked(servers[1])) and len(asked(servers[1])) == 14


def test_a_server_comes_back_with_the_present_adapter() -> None:
    with fakes({}, {"seconds": 0.05}) as servers:
        made = rollouts(servers, first_wait=0.1)
        port = servers[0].port
        servers[0].stop()
        prompts = rows(8, 2)
        check_rows(made.generate(prompts, None, 2), prompts)
        assert not made.fleet.servers[0].alive
        made.sync_weights()
        servers[0] = FakeVLLM(port)
        many = rows(20, 2)
        until = time.monotonic() + 30
        while not asked(servers[0]):
            assert time.monotonic() < until
            check_rows(made.generate(many, None, 2), many)
        assert made.fleet.servers[0].alive and list(servers[0].adapters) == [made.adapter.name]


def test_a_restarted_server_that_lost_the_adapter_gets_it_again() -> None:
    with fakes({}) as servers:
        made = rollouts(servers)
        servers[0].adapters.clear()
        prompts = rows(3, 2)
        check_rows(made.generate(prompts, None, 2), prompts)
        assert list(servers[0].adapters) == [made.adapter.name]


def test_waits_are_doubled_until_the_server_is_back() -> None:
    with fakes({}) as servers:
        made = rollouts(servers, first_wait=0.1)
        server = made.fleet.servers[0]

        def take_out(wait: float) -> None:
            server.next_try, before = 0.0, time.monotonic()
            server.take_out("test", server.life)
            assert before + wait <= server.next_try <= time.monotonic() + wait

        for wait in (0.1, 0.2, 0.4, 0.8):
            take_out(wait)
        server.take_back()
        take_out(0.1)
        life = server.life
        server.take_back()
        server.take_out("late", life)
        assert server.alive


def test_the_run_waits_for_the_only_server() -> None:
    with fakes({}) as servers:
        made = rollouts(servers, first_wait=0.1)
        port = servers[0].port
        servers[0].stop()
        threading.Timer(0.5, lambda: servers.append(FakeVLLM(port))).start()
        prompts = rows(3, 2)
        check_rows(made.generate(prompts, None, 2), prompts)


def test_the_run_stops_when_none_is_left() -> None:
    with fakes({}, {}) as servers:
        made = rollouts(servers, patience=0.4, first_wait=0.1)
        for server in servers:
            server.answer = "close"
            server.root = "other"  # so that neither comes back
        started = time.monotonic()
        with pytest.raises(ConnectionError, match="2 of 2 vLLM servers did not come up within 0 s") as caught:
            made.generate(rows(4, 2), None, 2)
        assert time.monotonic() - started < 3
        assert all(server.url in str(caught.value) for server in servers)
        with pytest.raises(ValueError, match="speaks other"):
            made.sync_weights()


def test_a_long_prompt_is_named() -> None:
    with fakes({"window": 40}, {"window": 64}) as servers:
        made = rollouts(servers)
        prompts = [[7] * 5, [7] * 5, [8] * 40, [8] * 40]
        with pytest.raises(ValueError, match="prompt of row 2 has 40 tokens, and the vLLM engine's window is 40"):
            made.generate(prompts, None, 2)
        check_rows(made.generate([[8] * 39], None, 1), [[8] * 39], longest=1)


def test_a_refused_request_names_its_row() -> None:
    with fakes({"window": 40}) as servers:
        made = rollouts(servers)
        servers[0].window = 7
        with pytest.raises(
            ValueError, match=r"prompt of row 2 \(2 tokens, 6 for the completion\) is refused .*maximum"
        ):
            made.generate([[7], [7], [8, 8], [8, 8]], None, 2)


def test_beams_are_unique_and_stand_before_the_samples(caplog: pytest.LogCaptureFixture) -> None:
    with fakes({}) as servers:
        size = GroupSize(completions=4, beams=2, length_penalty=0.5)
        made = rollouts(servers, search=GroupSearch("beam+sampling", size), needs_logprobs=False)
        made.model.train()
        prompts = rows(3, 4)
        _, completions, _, _ = made.generate(prompts, None, 4)
        for i in range(0, 12, 4):
            first = prompts[i][0]
            assert [c[0] for c in completions[i : i + 4]] == [first, first + 1, first, first]
        body = next(body for body in servers[0].bodies if body.get("use_beam_search") and body["prompt"] == [10])
        assert (body["n"], body["length_penalty"], body["include_stop_str_in_output"]) == (2, 0.5, True)
        # Evaluation and later turns are samples
        before = len(servers[0].bodies)
        made.generate(prompts, None, 1)
        made.model.eval()
        made.generate(prompts, None, 4)
        assert not any(body.get("use_beam_search") for body in servers[0].bodies[before:])
        with pytest.raises(ValueError, match="needs the 4 rows of a group in one process, and rows 0 to 3"):
            made.model.train()
            made.generate(rows(3, 2), None, 4)


def test_beams_that_end_alike_are_told(caplog: pytest.LogCaptureFixture) -> None:
    with fakes({}) as servers, caplog.at_level(logging.WARNING, "grpo_ext"):
        search = GroupSearch("beam", GroupSize(completions=4, beams=4))
        made = rollouts(servers, search=search, needs_logprobs=False)
        made.model.train()
        # The search goes on after an end token that it does not know: two beams are the same up to there
        beams = [[9, 1, 5], [8, 8, 8], [9, 1, 6], [7, 1]]
        choice = FakeVLLM._choice
        servers[0]._choice = lambda body, index: {**choice(servers[0], body, index), "token_ids": beams[index]}
        _, completions, found, _ = made.generate([[5, 5]] * 4, None, 4)
    assert completions == [[9, 1], [8, 8, 8], [7, 1], [9, 1]]
    assert [len(values) for values in found] == [2, 3, 2, 2]
    assert "a prompt has 3 different completions, fewer than 4" in caplog.text


def test_an_empty_completion_gets_an_end() -> None:
    with fakes({}) as servers:
        made = rollouts(servers)
        choice = FakeVLLM._choice
        servers[0]._choice = lambda body, index: {**choice(servers[0], body, index), "token_ids": [], "logprobs": None}
        assert made.generate([[5]], None, 1) == ([[5]], [[1]], [[[None]]], None)


def test_images_are_refused() -> None:
    with fakes({}) as servers, pytest.raises(ValueError, match="sends token ids alone"):
        rollouts(servers).generate([[5]], [["picture"]], 1)


@pytest.mark.parametrize(
    ("fields", "error", "match"),
    [
        ({"root": "other/model"}, ValueError, "speaks other/model, and the policy's base is elsewhere/tiny"),
        ({"updates": False}, ValueError, "does not load adapters .*VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve"),
        ({"max_rank": 2}, ValueError, "adapter has rank 4, and .* than max_lora_rank 2.*--max-lora-rank 8, or"),
        ({"raw": True}, ValueError, "start it with --logprobs-mode processed_logprobs"),
        ({"answer": "garbage"}, ConnectionError, "something that is not vLLM's: '<html>Welcome"),
        ({"answer": "no ids"}, ConnectionError, "is it a vLLM that knows `return_token_ids`"),
    ],
)
def test_what_is_wrong_shows_before_the_first_step(fields: dict[str, Any], error: type, match: str) -> None:
    with fakes({}, fields) as servers, pytest.raises(error, match=match) as caught:
        rollouts(servers, patience=0.2)
    assert servers[1].url in str(caught.value) and servers[0].url not in str(caught.value)


def test_raw_log_probabilities_are_enough_without_the_correction() -> None:
    with fakes({"raw": True}) as servers:
        rollouts(servers, needs_logprobs=False)


def test_a_server_that_is_not_there_is_named() -> None:
    with fakes({}, {}) as servers:
        servers[1].stop()
        with pytest.raises(ConnectionError, match=r"1 of 2 vLLM servers .* does not answer: .*refused"):
            rollouts(servers, patience=0.2)


def test_mixed_versions_are_told(caplog: pytest.LogCaptureFixture) -> None:
    with fakes({}, {"version": "0.30.0"}) as servers, caplog.at_level(logging.WARNING, "grpo_ext"):
        rollouts(servers)
    assert "different versions (0.30.0, 0.31.0)" in caplog.text


def test_a_sampling_field_that_no_server_knows_is_refused() -> None:
    with pytest.raises(ValueError, match="`generation_kwargs` has min_pp"):
        rollouts([], extra={"min_pp": 0.1})
