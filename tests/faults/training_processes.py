"""One of two processes: `torchrun --nproc_per_node 2 training_processes.py POLICY OUT`.

Process 1 has an infinite loss in the second step, with a finite gradient. Then process 0, which alone writes the state
of the optimizer, finds no room in the last step. Each process writes down its weights and what stopped it.
"""

import os
import sys
from pathlib import Path

import torch
from test_disk_faults import files_of_at_most, saving_fails_at
from test_finite_faults import infinite, spoil
from tiny_runs import make, weights

from grpo_ext.faults import RunStopped
from grpo_ext.launch import leave_process_group


def main(folder: Path, out: Path) -> None:
    rank = int(os.environ["RANK"])
    fields = {"optim": "adamw_torch", "max_steps": 3, "per_device_train_batch_size": 2, "ddp_backend": "gloo"}
    trainer = make(folder, out / "run", save_strategy="steps", save_steps=1, **fields)
    found = spoil(trainer, infinite, (2,) if rank == 1 else ())
    saving_fails_at(trainer, (3,), lambda: files_of_at_most(20_000))
    stopped = ""
    try:
        trainer.train()
    except RunStopped as error:
        stopped = str(error)
    result = {"weights": found.weights, "end": weights(trainer.model), "stopped": stopped}
    torch.save({**result, "skipped": trainer.skipped_steps}, out / f"{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
    leave_process_group()
