"""Two stock vLLM servers, for real: what they answer, and a crash of one in the middle of a batch."""

import dataclasses
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from grpo_ext.rollouts.strategies import GroupSize
from grpo_ext.rollouts.vllm.adapters import AdapterFolder
from grpo_ext.rollouts.vllm.requests import GroupSearch, Sampling
from grpo_ext.rollouts.vllm.rollouts import Rows
from grpo_ext.rollouts.vllm.servers import ServerOptions, ServerRollouts
from real_vllm import PROMPT, chi_square, expected, kill, logps, policy, save_tiny, served

pytestmark = pytest.mark.vllm

FLAGS = ("--dtype", "float32", "--max-model-len", "256", "--max-num-seqs", "32")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def servers(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list]:
    with served(tiny, 2, tmp_path_factory.mktemp("logs"), *FLAGS) as started:
        yield started


def rollouts(
    tiny: str, servers: list, search: GroupSearch | None = None, rank: int = 8, **options: object
) -> ServerRollouts:
    return ServerRollouts(
        policy(tiny, rank),
        Sampling(temperature=0.7, max_tokens=12),
        search or GroupSearch(),
        [1],
        ServerOptions(**{"urls": [url for url, _ in servers], "base": tiny, "patience": 20.0, **options}),
        AdapterFolder(dtype=torch.float32),
    )


def check_rows(made: ServerRollouts, rows: Rows, prompts: list[list[int]]) -> None:
    """Each row is a sample of the policy after its own prompt: nobody else's log-probabilities fit."""
    assert rows[0] == prompts and len(rows[1]) == len(rows[2]) == len(prompts)
    for prompt, completion, values in zip(prompts, rows[1], rows[2], strict=True):
        own = logps(made.model, prompt, completion, 0.7)
        assert (torch.tensor(values)[:, 0] - own).abs().max() < 1e-4
        with made.model.disable_adapter():
            base = logps(made.model, prompt, completion, 0.7)
        assert len(completion) < 3 or (torch.tensor(values)[:, 0] - base).abs().max() > 0.1


def test_rows_come_from_the_adapter_of_the_last_sync(tiny: str, servers: list) -> None:
    made = rollouts(tiny, servers)
    prompts = [[5 + i] * (1 + i % 7) for i in range(10) for _ in range(4)]
    check_rows(made, made.generate(prompts, None, 4), prompts)
    with torch.no_grad():
        for name, weight in made.model.named_parameters():
            if "lora_B" in name:
                weight.mul_(-0.7)
    made.sync_weights()
    check_rows(made, made.generate(prompts, None, 4), prompts)
    for server in made.fleet.servers:
        loaded = [row["id"] for row in server.models() if row.get("parent")]
        assert loaded == [made.adapter.name]
        server.unload(made.adapter.name)


@pytest.mark.parametrize(
    "fields", [{"temperature": 0.6}, {"temperature": 0.8, "top_p": 0.7}, {"temperature": 0.9, "top_k": 7}], ids=str
)
def test_samples_follow_the_policy(tiny: str, servers: list, fields: dict[str, Any]) -> None:
    made = rollouts(tiny, servers)
    made.sampling = dataclasses.replace(made.sampling, max_tokens=1, **fields)
    _, completions, _, _ = made.generate([PROMPT] * 2000, None, 2000)
    counts = torch.bincount(torch.tensor([c[0] for c in completions]), minlength=100).double()
    probabilities = expected(made.model, **fields)
    assert counts[probabilities == 0].sum() == 0
    assert chi_square(counts, probabilities) > 1e-4
    assert chi_square(counts, expected(made.model, temperature=0.4)) < 1e-6
    for server in made.fleet.servers:
        server.unload(made.adapter.name)


def test_beams_of_a_server(tiny: str, servers: list) -> None:
    made = rollouts(tiny, servers, GroupSearch("beam", GroupSize(6, 6)), needs_logprobs=False)
    made.model.train()
    prompts = [[5, 6]] * 6 + [[9]] * 6
    _, completions, found, _ = made.generate(prompts, None, 6)
    for start in (0, 6):
        assert len({tuple(c) for c in completions[start : start + 6]}) == 6
        totals = [logps(made.model, prompts[start], c, 0.7).sum() for c in completions[start : start + 6]]
        assert min(totals) > -12 * 4.6  # better than the uniform distribution
    assert all(len(values) == len(c) for values, c in zip(found, completions, strict=True))


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"rank": 32}, "adapter has rank 32, and .* greater than max_lora_rank 16.*--max-lora-rank 32"),
        ({"base": "another/model"}, "speaks .*, and the policy's base is another/model"),
        (
            {"search": GroupSearch("beam", GroupSize(30, 30))},
            "search of 30 beams .* max allowed: 20 .*--max-logprobs 60",
        ),
    ],
    ids=["rank", "model", "beams"],
)
def test_what_does_not_fit_is_refused(tiny: str, servers: list, fields: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        rollouts(tiny, servers, **fields)


def test_log_probabilities_before_the_temperature_are_refused(tiny: str, tmp_path: Path) -> None:
    # The last flag counts
    with served(tiny, 1, tmp_path, *FLAGS, "--logprobs-mode", "raw_logprobs") as started:
        with pytest.raises(ValueError, match="start it with --logprobs-mode processed_logprobs"):
            rollouts(tiny, started)
        rollouts(tiny, started, needs_logprobs=False)


def test_a_crash_in_the_middle_loses_no_prompt(tiny: str, servers: list, monkeypatch: pytest.MonkeyPatch) -> None:
    made = rollouts(tiny, servers, first_wait=60.0)
    first, process = made.fleet.servers[0], servers[0][1]
    complete, asked = first.complete, threading.Event()

    def crash(body: dict) -> list[dict]:
        if not asked.is_set():
            asked.set()
            # Held still, or it might answer before its end
            process.send_signal(signal.SIGSTOP)
            threading.Timer(0.5, kill, [process]).start()
        return complete(body)

    monkeypatch.setattr(first, "complete", crash)
    prompts = [[5 + i] * (1 + i % 7) for i in range(40) for _ in range(4)]
    rows = made.generate(prompts, None, 4)
    assert asked.is_set() and not first.alive and made.fleet.servers[1].alive
    check_rows(made, rows, prompts)
