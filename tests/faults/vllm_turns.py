"""One of two processes that take turns with a tool: `torchrun --nproc_per_node 2 vllm_turns.py POLICY OUT URL`.

The rows of process 0 alone call the tool, so it asks vLLM twice a generation and process 1 once. The second turn of
the second step fails.
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch
from tiny_runs import QUIET, early_letters, policy, prompts

from grpo_ext import GRPOExtConfig, GRPOExtTrainer
from grpo_ext.faults import RunStopped
from grpo_ext.launch import leave_process_group
from tool_chat import calling, tool_tokenizer


def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: First number.
        b: Second number.
    """
    return a + b


def with_tool(folder: Path, out: Path, url: str, calls: bool, **fields: Any) -> GRPOExtTrainer:
    """A trainer on a server, with a tool that half of its rows call, or none of them."""
    served = {"use_vllm": True, "vllm_sync": "adapter", "vllm_server_urls": [url]}
    config = GRPOExtConfig(
        output_dir=str(out),
        vllm_importance_sampling_correction=False,
        **{**QUIET, **served, "max_completion_length": 96, **fields},
    )
    cls = calling(GRPOExtTrainer, "add", {"a": 2, "b": 3}) if calls else GRPOExtTrainer
    return cls(
        policy(folder, lora=True), early_letters, config, prompts(True),
        processing_class=tool_tokenizer(), tools=[add],
    )  # fmt: skip


def main(folder: Path, out: Path, url: str) -> None:
    first = os.environ["RANK"] == "0"
    trainer = with_tool(folder, out / "run", url, first, max_steps=3, ddp_backend="gloo", ddp_timeout=60)
    turns: list[int] = []
    generate = trainer.vllm_generation.generate

    def turn(*args: Any, **kwargs: Any) -> Any:
        turns.append(trainer.state.global_step)
        if first and turns == [0, 0, 1, 1]:
            raise ConnectionError("no server is up")
        return generate(*args, **kwargs)

    trainer.vllm_generation.generate = turn
    stopped = ""
    try:
        trainer.train()
    except RunStopped as error:
        stopped = str(error)
    torch.save({"turns": turns, "stopped": stopped}, out / f"{os.environ['RANK']}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
    leave_process_group()
