"""Runs that are killed and gone on with, each in a process forked off this one, which has imported everything once.

python resume_runs.py PLAN: a JSON file with `policy` (a saved tiny policy), `out`, and `runs`, each with a `name`, a
`case`, `steps`, `fields` of its own, `again` where it has a checkpoint to begin with, and `kills`, the moment of each:
    ["call", NAME, K]: at the K-th call of a row of MOMENTS
    ["share", S]: after this share of the seconds that the plan's first run took
A run is started, and started again with `resume_from_checkpoint` "last" after each kill. It leaves its log and its
weights in `out/NAME`; what each process ended with goes into `results.json` beside the plan.
"""

import json
import logging
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny_runs import early_letters, make, prompts, weights

from grpo_ext import GRPOExtTrainer
from grpo_ext.callbacks import MetricsCallback
from grpo_ext.checkpoints import LAST
from grpo_ext.trainer import resume, saving

# Two micro-batches a step, eight a generation block, two blocks an epoch: checkpoints fall into all of them. With one
# iteration a block has four, and eight steps are two epochs.
COMMON: dict[str, Any] = {
    "steps_per_generation": 4,
    "num_iterations": 2,
    "save_strategy": "steps",
    "save_steps": 3,
    "save_total_limit": 1,
    "logging_steps": 2,
    "optim": "adamw_torch",
    "learning_rate": 1e-3,
}
CASES: dict[str, dict[str, Any]] = {
    "full": {"beta": 0.04, "kl_controller": "ziegler", "kl_target": 0.1, "resampling": "dynamic_sampling"},
    "lora": {"beta": 0.04, "lora": True, "kl_controller": "ziegler", "kl_target": 0.1},
    # With this seed a group waits in the checkpoint of the third step
    "resampled": {
        "lora": True,
        "resampling": "dynamic_sampling",
        "resampling_rounds": 4,
        "num_iterations": 1,
        "seed": 3,
    },
    "synced": {"beta": 0.04, "sync_ref_model": True, "ref_model_sync_steps": 2, "ref_model_mixup_alpha": 0.5},
    "rounds": {"beta": 0.04, "num_rounds": 2, "lora": True},
    "streamed": {},
}
MOMENTS: dict[str, tuple[Any, str]] = {
    "micro-batch": (GRPOExtTrainer, "training_step"),
    "rewards": (GRPOExtTrainer, "_calculate_rewards"),
    "optimizer": (torch.optim.AdamW, "step"),
    "state of a checkpoint": (resume, "save_file"),
    "manifest": (saving, "write_manifest"),
    "rename": (saving, "publish"),
    "deletion": (saving, "rotate"),
}


def rare(completions: list[str], **kwargs: Any) -> list[float]:
    """Equal in many groups, so that others are drawn, and sometimes more than are needed."""
    return [float(text[:1] < "P" and sum(map(ord, text)) % 2) for text in completions]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_call(owner: Any, name: str, count: int) -> None:
    """Die at a call of a function."""
    inner: Callable[..., Any] = getattr(owner, name)
    calls: list[None] = []

    def deadly(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        if len(calls) == count:
            die()
        return inner(*args, **kwargs)

    setattr(owner, name, deadly)


def arm(kill: list[Any], whole: float) -> None:
    if kill[0] == "call":
        at_call(*MOMENTS[kill[1]], kill[2])
    else:
        timer = threading.Timer(kill[1] * whole, die)
        timer.daemon = True
        timer.start()


def train(policy: Path, out: Path, run: dict[str, Any], again: bool) -> None:
    case, steps = run["case"], run["steps"]
    fields = {**COMMON, "max_steps": steps, **CASES[case], **run.get("fields", {})}
    if "num_rounds" in fields:
        fields |= {"steps_per_round": steps // 2, "max_steps": -1}
    trainer = make(
        policy,
        out,
        reward_funcs=rare if "resampling" in fields else early_letters,
        dataset=prompts().to_iterable_dataset() if case == "streamed" else None,
        **fields,
    )
    trainer.add_callback(MetricsCallback(out / "metrics.jsonl"))
    trainer.train(resume_from_checkpoint=LAST if again else None)
    save_file(weights(trainer.model), out / "weights.safetensors")


def forked(out: Path, work: Callable[[], None]) -> tuple[int, float]:
    """Exit code of a process that does some work, negative where a signal ended it, and its seconds."""
    started = time.time()
    child = os.fork()
    if child == 0:
        code = 1
        out.mkdir(parents=True, exist_ok=True)
        log = os.open(out / "output.txt", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        try:
            work()
            code = 0
        finally:
            # Printed here, because the process ends before anyone else could
            if code:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), time.time() - started


def perform(policy: Path, out: Path, run: dict[str, Any], whole: float) -> dict[str, Any]:
    def work(again: bool, kill: list[Any] | None) -> Callable[[], None]:
        def inner() -> None:
            if kill is not None:
                arm(kill, whole)
            train(policy, out, run, again)

        return inner

    kills = [*run.get("kills", []), None]
    ended: list[tuple[int, float]] = []
    for place, kill in enumerate(kills):
        ended.append(forked(out, work(place > 0 or run.get("again", False), kill)))
        while kill is not None and kill[0] == "share" and ended[-1][0] == 0:
            # On a machine that is shared a run may take less time than the first one, and end before its kill
            shutil.rmtree(out)
            kill = ["share", kill[1] / 2]
            ended[-1] = forked(out, work(False, kill))
    return {"name": run["name"], "codes": [code for code, _ in ended], "seconds": [second for _, second in ended]}


def main(plan: Path) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(name)s %(message)s")
    logging.getLogger("grpo_ext").setLevel(logging.INFO)
    given = json.loads(plan.read_text())
    out = Path(given["out"])
    results: list[dict[str, Any]] = []
    for run in given["runs"]:
        whole = results[0]["seconds"][0] if results else 0.0
        results.append(perform(Path(given["policy"]), out / run["name"], run, whole))
    (plan.parent / "results.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
