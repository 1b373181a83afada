"""One of two processes of a run with process supervision: `torchrun --nproc_per_node 2 process_processes.py`."""

import os
import sys
from pathlib import Path
from typing import Any

import torch
from tiny_runs import make, weights

from grpo_ext.launch import leave_process_group

# For each row of a process the rewards of its steps, which end after 1, 2, 3... tokens. The group of four rows lies on
# two processes, and the longest row decides how wide the table is on both.
SCRIPT = {0: [[1.0, 0.0], [0.5]], 1: [[], [2.0, 1.0, 1.0]]}


def run(folder: Path, out: Path, rewards: list[list[float]]) -> dict[str, Any]:
    made = make(
        folder, out, per_device_train_batch_size=2, gradient_accumulation_steps=1, max_steps=1, ddp_backend="gloo",
        num_generations=4, process_reward="calculations", loss_type="grpo",
    )  # fmt: skip
    made._splitter = lambda text: range(1, len(text) + 1)
    made._process_reward = lambda steps, **given: [
        [value for value, _ in zip(row, step, strict=False)] + [None] * max(0, len(step) - len(row))
        for row, step in zip(rewards, steps, strict=True)
    ]
    seen: list[dict[str, Any]] = []
    inner = made._generate_and_score_completions
    made._generate_and_score_completions = lambda inputs: seen.append(inner(inputs)) or seen[-1]
    made.train()
    steps = [[step.token for step in row] for row in made._steps]
    return {"advantages": seen[0]["advantages"], "steps": steps, "weights": weights(made.model),
            "logs": made.state.log_history}  # fmt: skip


def main(folder: Path, out: Path) -> None:
    rank = int(os.environ["RANK"])
    torch.save(run(folder, out / "run", SCRIPT[rank]), out / f"{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
    leave_process_group()
