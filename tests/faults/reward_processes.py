"""One of two processes: `torchrun --nproc_per_node 2 reward_processes.py POLICY OUT`.

Process 1's reward function raises at its third call, then its process reward. Each process writes down what stopped
it, goes on without the fault, and saves its weights beside those of the uninterrupted run.
"""

import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from fault_runs import failing, history
from tiny_runs import early_letters, make, weights
from trl import GRPOTrainer

from grpo_ext.checkpoints import LAST
from grpo_ext.faults import RunStopped
from grpo_ext.launch import leave_process_group

RUN: dict[str, Any] = {"max_steps": 3, "per_device_train_batch_size": 2, "ddp_backend": "gloo"}


def raises(*args: Any) -> Any:
    raise ConnectionError("the server is away")


def steps_of(trainer: GRPOTrainer, rank: int) -> None:
    """A process reward that raises on process 1."""

    def ones(steps: list[Any], **given: Any) -> list[list[float]]:
        if rank == 1 and trainer.state.global_step == 1:
            raises()
        return [[1.0] * len(row) for row in steps]

    trainer._process_reward = ones


def main(folder: Path, out: Path) -> None:
    rank = int(os.environ["RANK"])
    # Who is left alone gives up soon
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=60))
    whole = make(folder, out / "whole", **RUN)
    whole.train()
    reward = failing(raises, range(3, 4)) if rank == 1 else early_letters
    trainer = make(folder, out / "run", reward_funcs=reward, **RUN)
    stops: list[tuple[str, list[str]]] = []
    try:
        trainer.train()
    except RunStopped as error:
        stops.append((str(error), error.__notes__))
    again = make(folder, out / "run", **RUN)
    again.train(resume_from_checkpoint=LAST)
    steps = make(folder, out / "steps", process_reward="calculations", **RUN)
    steps_of(steps, rank)
    try:
        steps.train()
    except RunStopped as error:
        stops.append((str(error), error.__notes__))
    found = {"stops": stops, "whole": weights(whole.model), "again": weights(again.model)}
    logs = {"whole_log": history(whole), "again_log": history(again)}
    torch.save({**found, **logs}, out / f"{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
    leave_process_group()
