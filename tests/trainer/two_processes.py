"""One of two processes of a run with dynamic sampling: `torchrun --nproc_per_node 2 two_processes.py POLICY OUT`."""

import os
import sys
from pathlib import Path

import torch
from resampled_runs import run, scripted

from grpo_ext.launch import leave_process_group

# Two groups of four on each process; a reward sees those of its own process. At first process 0 lacks one group and
# process 1 none, so both draw ceil(1 * 5 / 4) = 2. Process 0 finds one there, process 1 carries both of its own over.
SCRIPT = {
    0: [[True, False], [False, True], [True, True]],
    1: [[True, True], [True, True], [False, False]],
}


def main(folder: Path, out: Path) -> None:
    rank = int(os.environ["RANK"])
    reward = scripted(SCRIPT[rank])
    found = run(
        folder,
        out / "run",
        reward,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        resampling="dynamic_sampling",
        ddp_backend="gloo",
        log_completions=True,
    )
    result = {
        "batches": found.batches,
        "asked": [found.asked(step) for step in range(2)],
        "rewards": reward.rewards,
        "prompts": reward.prompts,
        "weights": found.weights,
        "logs": found.logs,
    }
    torch.save(result, out / f"{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
    leave_process_group()
