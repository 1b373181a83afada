"""The real vLLM for tests: a tiny model that it can serve, the policy over it, and servers as processes."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from grpo_ext.models import tiny_policy
from grpo_ext.models.policy import add_lora
from grpo_ext.rollouts.vllm.server import Server, ServerDown

START_SECONDS = 240
PROMPT = [5, 6, 7]
# One thread: a second busy process beside this one makes threads wait for each other. A gigabyte of cache is plenty.
ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}


def save_tiny(folder: Path) -> str:
    """A random model of two layers with a head size that vLLM has kernels for, 32."""
    model, tokenizer = tiny_policy(seed=0, hidden_size=128)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def policy(folder: str, rank: int = 8) -> PeftModel:
    """The model with an adapter that changes what it says."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = add_lora(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), rank)
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.3)
    return model.eval()


@torch.no_grad()
def log_softmax_after(model: Any, prompt: list[int], completion: list[int], temperature: float) -> Tensor:
    """(T, V) log-probabilities of every token at each place of a completion."""
    logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
    return (logits.float() / temperature).log_softmax(-1)


def logps(model: Any, prompt: list[int], completion: list[int], temperature: float) -> Tensor:
    """(T,) log-probabilities of a completion's tokens."""
    every = log_softmax_after(model, prompt, completion, temperature)
    return every.gather(1, torch.tensor(completion)[:, None]).squeeze(1)


def expected(model: Any, temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0, min_p: float = 0.0) -> Tensor:
    """(V,) probabilities of the token after PROMPT, from the definitions."""
    found = log_softmax_after(model, PROMPT, [0], temperature)[0].exp().double()
    ordered, order = found.sort(descending=True)
    # The nucleus is the smallest set of the most probable tokens that reaches the mass
    keep = ordered.cumsum(0) - ordered < top_p
    keep &= torch.arange(len(ordered)) < (top_k or len(ordered))
    keep &= ordered >= min_p * ordered[0]
    found[order[~keep]] = 0
    return found / found.sum()


def chi_square(counts: Tensor, probabilities: Tensor) -> float:
    """p-value of counts under probabilities; rare tokens share one bin."""
    total = counts.sum()
    often = probabilities * total >= 5
    rest = torch.tensor([probabilities[~often].sum()]) * total
    wanted = torch.cat([probabilities[often] * total, rest])
    seen = torch.cat([counts[often], counts[~often].sum()[None]])
    if wanted[-1] < 5:
        if seen[-1] > 25:
            return 0.0
        wanted, seen = wanted[:-1], seen[:-1]
    statistic = ((seen - wanted) ** 2 / wanted).sum()
    return torch.special.gammaincc(torch.tensor((len(wanted) - 1) / 2).double(), statistic / 2).item()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextmanager
def served(model: str, count: int, log: Path, *flags: str) -> Iterator[list[tuple[str, subprocess.Popen]]]:
    """Stock servers of one model, started together; (address, process) of each."""
    started = []
    try:
        for index in range(count):
            port = free_port()
            # The command `vllm` looks for a distribution of that name, and the CPU build has another one
            command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
            command += ["--host", "127.0.0.1", "--port", str(port), "--enable-lora", "--max-lora-rank", "16"]
            command += ["--logprobs-mode", "processed_logprobs", *flags]
            with (log / f"server_{index}.log").open("w") as file:
                process = subprocess.Popen(
                    command, stdout=file, stderr=file, env=os.environ | ENVIRONMENT, start_new_session=True
                )
            started.append((f"http://127.0.0.1:{port}", process))
        for index, (url, process) in enumerate(started):
            _wait(Server(url), process, log / f"server_{index}.log")
        yield started
    finally:
        for _, process in started:
            process.terminate()
        for _, process in started:
            _end(process)


def _wait(server: Server, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            server.models()
            return
        except ServerDown:
            time.sleep(0.5)
    raise RuntimeError(f"{server.url} did not come up:\n{log.read_text()[-3000:]}")


def kill(process: subprocess.Popen) -> None:
    """Crash a server: its connections break off; what it has started ends on its own."""
    process.kill()
    process.wait()


def _end(process: subprocess.Popen) -> None:
    """Wait for a server, and for the engine that it has started, which frees its shared memory."""
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for name in (signal.SIGTERM, signal.SIGKILL):
        for _ in range(50):
            try:
                os.killpg(process.pid, 0)
            except ProcessLookupError:
                return
            time.sleep(0.1)
        os.killpg(process.pid, name)
