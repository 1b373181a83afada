"""One of two processes of a served run: `torchrun --nproc_per_node 2 vllm_processes.py POLICY OUT URL`."""

import os
import sys
from pathlib import Path

import torch
from tiny_runs import make, weights

from grpo_ext.launch import leave_process_group


def main(folder: Path, out: Path, url: str) -> None:
    trainer = make(
        folder,
        out / "run",
        lora=True,
        use_vllm=True,
        vllm_sync="adapter",
        vllm_server_urls=[url],
        vllm_importance_sampling_correction=False,
        ddp_backend="gloo",
        learning_rate=0.5,
    )
    asked: list[list[int]] = []
    generate = trainer.vllm_generation.generate

    def note(prompts: list[list[int]], *args: object, **kwargs: object) -> object:
        asked.extend(prompts)
        return generate(prompts, *args, **kwargs)

    trainer.vllm_generation.generate = note
    trainer.train()
    torch.save({"asked": asked, "weights": weights(trainer.model)}, out / f"{os.environ['RANK']}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
    leave_process_group()
