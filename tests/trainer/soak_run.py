"""Two hundred steps of a tiny policy with everything on that piles up, and what the process holds on its way.

python soak_run.py POLICY OUT: writes `OUT/held.json`, a list of readings, one each ten steps from the fiftieth on.

A reading is taken after a full garbage collection and after the C library has given free pages back, so that it does
not depend on when either last ran. `python` is what Python's allocator holds of what was asked for since step 50, in
bytes, which is exact and knows every list and string; `tensors` and `objects` count what is alive; `resident` also
sees memory that Python did not ask for.
"""

import ctypes
import gc
import json
import os
import sys
import tempfile
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import torch
from tiny_runs import QUIET, prompts, texts
from tiny_runs import policy as opened
from transformers import TrainerCallback

from grpo_ext import GRPOExtConfig, GRPOExtTrainer
from grpo_ext.callbacks import CompletionsCallback, HealthCallback, MetricsCallback, SampleCallback
from grpo_ext.models import tiny_tokenizer

FROM, EVERY, STEPS = 50, 10, 200


def sometimes(completions: list[Any], **kwargs: Any) -> list[float]:
    """Equal in many groups, so that others are drawn."""
    return [float(text[:1] < "P" and sum(map(ord, text)) % 2) for text in texts(completions)]


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def children() -> int:
    """Processes that this one has started."""
    return len(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


class Readings(TrainerCallback):
    """Reads after a step, when its checkpoint is written."""

    def __init__(self) -> None:
        self.found: list[dict[str, Any]] = []
        self.traces: list[tracemalloc.Snapshot] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step < FROM or state.global_step % EVERY:
            return
        gc.collect()
        if not tracemalloc.is_tracing():
            tracemalloc.start()
        ctypes.CDLL(None).malloc_trim(0)
        alive = gc.get_objects()
        self.found.append(
            {
                "step": state.global_step,
                "python": tracemalloc.get_traced_memory()[0],
                "resident": resident(),
                "objects": len(alive),
                "tensors": sum(isinstance(one, torch.Tensor) for one in alive),
                "threads": threading.active_count(),
                "files": len(os.listdir("/proc/self/fd")),
                "children": children(),
                "temporary": sorted(os.listdir(tempfile.gettempdir())),
                "checkpoints": sorted(path.name for path in Path(args.output_dir).glob("checkpoint-*")),
            }
        )
        del alive
        if state.global_step in (2 * FROM, STEPS - EVERY):
            self.traces.append(tracemalloc.take_snapshot())


def main(policy: Path, out: Path) -> None:
    fields: dict[str, Any] = {
        "beta": 0.04,
        "resampling": "dynamic_sampling",
        "resampling_rounds": 3,
        "optim": "adamw_torch",
        "learning_rate": 1e-4,
        "max_steps": STEPS,
        "num_iterations": 2,
        "save_strategy": "steps",
        "save_steps": 5,
        "save_total_limit": 2,
        "eval_strategy": "steps",
        "eval_steps": 10,
        "per_device_eval_batch_size": 4,
    }
    trainer = GRPOExtTrainer(
        model=opened(policy),
        reward_funcs=sometimes,
        args=GRPOExtConfig(output_dir=str(out), **{**QUIET, **fields}),
        train_dataset=prompts(),
        eval_dataset=prompts().select(range(2)),
        processing_class=tiny_tokenizer(),
    )
    readings = Readings()
    trainer.add_callback(MetricsCallback(out / "metrics.jsonl"))
    trainer.add_callback(HealthCallback(out / "health.jsonl"))
    trainer.add_callback(SampleCallback(20, trainer.newest_groups))
    trainer.add_callback(CompletionsCallback(out / "completions.jsonl", trainer.newest_groups, limit=100_000))
    trainer.add_callback(readings)
    trainer.train()
    first, last = readings.traces
    grown = [str(line) for line in last.compare_to(first, "lineno")[:12]]
    (out / "held.json").write_text(json.dumps({"readings": readings.found, "grown": grown}, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
