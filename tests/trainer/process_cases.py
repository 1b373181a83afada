"""Short runs by several processes, and by one with as many more micro-batches.

accelerate launch --config_file CONFIG process_cases.py POLICY OUT [CASE...]: trains each case and saves the weights
and the log in `OUT/CASE.pt`. Without a launcher it is one process.
"""

import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import trl.trainer.grpo_trainer as host
from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from datasets import Dataset
from resume_runs import at_call
from tiny_runs import PROMPTS, QUIET, STOCK, policy, tiny_tokenizer
from torch import Tensor
from torch.distributed.tensor import DTensor
from trl import GRPOTrainer

from grpo_ext import GRPOExtConfig, GRPOExtTrainer
from grpo_ext.checkpoints import LAST
from grpo_ext.launch import leave_process_group
from grpo_ext.ops.advantages import BASELINES, SCALES
from grpo_ext.ops.aggregation import AGGREGATIONS
from grpo_ext.ops.kl import KL_CONTROLLERS, KL_ESTIMATORS
from grpo_ext.ops.ratios import RATIO_LEVELS

# The second step on the same completions is outside the clip range, where a wrong ratio shows.
COMMON: dict[str, Any] = {
    **QUIET,
    "learning_rate": 0.05,
    # Clipping would hide a wrong factor
    "max_grad_norm": 100.0,
    "lr_scheduler_type": "constant",
    "epsilon": 0.002,
    "epsilon_high": 0.003,
    "num_iterations": 2,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 4,
    "max_steps": 5,
}
KL = {"beta": 0.2}
LONGEST: int = COMMON["max_completion_length"]
# Fields are those of one process; more processes share out the micro-batches.
CASES: dict[str, dict[str, Any]] = {
    "stock_loss": {},
    **{name: {"aggregation": name} for name in AGGREGATIONS},
    **{
        f"kl_{name}": {"kl_estimator": name, "kl_in": "reward" if name == "k1" else "loss", **KL}
        for name in KL_ESTIMATORS
    },
    **{f"level_{name}": {"importance_sampling_level": name} for name in RATIO_LEVELS},
    **{
        f"baseline_{name}": {"advantage_baseline": name, **({"scale_rewards": "none"} if name == "none" else {})}
        for name in BASELINES
    },
    **{f"scale_{name}": {"scale_rewards": name} for name in SCALES},
    **{
        f"controller_{name}": {"kl_controller": name, **({} if name == "fixed" else {"kl_target": 0.02}), **KL}
        for name in KL_CONTROLLERS
    },
    "lora": {"lora": True, **KL},
    # Groups of eight, six on the first process and two on the second, and the other way round
    "straddling": {"per_device_train_batch_size": 6, "num_generations": 8, "aggregation": "group_sum"},
    "dead": {"dead": True},
    # Groups of a column, of 4, 8 and 12 rows
    "uneven_groups": {"group_by": "kind"},
    # The second process has no token in its first micro-batches
    "cut_short": {"mask_truncated_completions": True, "cut_short": True, "aggregation": "seq_mean_token_mean"},
    # Three generations an epoch and two a step
    "short_window": {"steps_per_generation": 2, "num_iterations": 1, "rows": 6},
}
# With a checkpoint in the middle of a generation block
KEPT = {"save_strategy": "steps", "save_steps": 3, "optim": "adamw_torch", "learning_rate": 1e-2, "max_grad_norm": 1.0}
# These make their own completions, and other processes draw others.
DRAWN: dict[str, dict[str, Any]] = {
    # The rows of the second process end at their first token
    "ends_early": {"ends_early": True, **KL},
    "ends_early_lora": {"ends_early": True, "lora": True, **KL},
    "beams": {"group_generation": "beam", "num_iterations": 1},
    "resampled": {"resampling": "dynamic_sampling", "dead": True, "num_iterations": 1},
    "uninterrupted": KEPT,
    "killed": {"killed": True, **KEPT},
    "resumed": {"resumed": True, **KEPT},
}
# What the config has no field for
PARTICULARS = {"cut_short", "lora", "dead", "rows", "ends_early", "killed", "resumed"}


def scripted(prompt: str, copy: int, call: int) -> list[int]:
    """A completion of 1 to 8 tokens, which ends with <eos> where it is shorter."""
    draw = random.Random(f"{prompt} {copy} {call}")
    length = draw.randint(1, LONGEST)
    ids = [draw.randint(4, 99) for _ in range(length)]
    return ids if length == LONGEST else [*ids[:-1], 1]


def rollouts(size: int, cut_short: bool) -> Callable[..., dict[str, Any]]:
    """TRL's `rollout_func`; a completion depends on the place of its row among those of all processes.

    With `cut_short` the second half of the rows of the first call reach the longest length.
    """
    calls: list[None] = []

    def rollout(prompts: list[str], trainer: GRPOTrainer) -> dict[str, Any]:
        first = trainer.accelerator.process_index * len(prompts)
        made = [scripted(prompt, (first + i) % size, len(calls)) for i, prompt in enumerate(prompts)]
        half = len(prompts) * trainer.accelerator.num_processes // 2
        if cut_short and not calls:
            made = [ids if first + i < half else [7 + first + i] * LONGEST for i, ids in enumerate(made)]
        calls.append(None)
        ids = [tiny_tokenizer()(prompt)["input_ids"] for prompt in prompts]
        return {"prompt_ids": ids, "completion_ids": made, "logprobs": None}

    return rollout


def worth(completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
    return [sum(ids) % 17 / 8 for ids in completion_ids]


def mostly_dead(prompts: list[str], completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
    """No spread but in the groups of three prompts of eight."""
    found = worth(completion_ids)
    return [value if prompt in PROMPTS[:3] else 1.0 for value, prompt in zip(found, prompts, strict=True)]


def rows(number: int = len(PROMPTS)) -> Dataset:
    kinds = ["a", "b", "b", "c", "c", "c", "a", "b"]
    return Dataset.from_dict({"prompt": PROMPTS[:number], "kind": kinds[:number]})


def whole(value: Tensor) -> Tensor:
    return (value.full_tensor() if isinstance(value, DTensor) else value).detach().clone()


def made(folder: Path, out: Path, name: str) -> GRPOExtTrainer:
    case = {**COMMON, **CASES.get(name, DRAWN.get(name, {}))}
    for field in ("gradient_accumulation_steps", "steps_per_generation"):
        if field in case:
            case[field] //= int(os.environ.get("WORLD_SIZE", "1"))
    # TRL 1.15 has no forward pass for sharded weights on a CPU
    cls = GRPOExtTrainer if STOCK is GRPOTrainer else type("Plain", (GRPOExtTrainer, STOCK), {})
    config = {field: value for field, value in case.items() if field not in PARTICULARS}
    return cls(
        model=policy(folder, case.get("lora", False)),
        reward_funcs=mostly_dead if "dead" in case else worth,
        args=GRPOExtConfig(output_dir=str(out), **config),
        train_dataset=rows(case.get("rows", len(PROMPTS))),
        processing_class=tiny_tokenizer(),
        rollout_func=rollouts(case["num_generations"], "cut_short" in case) if name in CASES else None,
    )


def train(folder: Path, out: Path, name: str) -> None:
    case = DRAWN.get(name, {})
    trainer = made(folder, out / ("killed" if "resumed" in case else name), name)
    if "ends_early" in case and trainer.accelerator.process_index == 1:
        ends = list(range(len(tiny_tokenizer())))
        trainer.generation_config.eos_token_id = trainer.generation_kwargs["eos_token_id"] = ends
    if "killed" in case:
        at_call(GRPOExtTrainer, "training_step", 8)
    before = trained(trainer)
    trainer.train(resume_from_checkpoint=LAST if "resumed" in case else None)
    after = trained(trainer)
    if trainer.accelerator.is_main_process:
        torch.save({"before": before, "after": after, "logs": trainer.state.log_history}, out / f"{name}.pt")


def trained(trainer: GRPOExtTrainer) -> dict[str, Tensor]:
    return {key: whole(weight) for key, weight in trainer.model.named_parameters() if weight.requires_grad}


def shard_on_cpu() -> None:
    """Let accelerate's FSDP run on CPUs: it knows it on devices of other kinds alone."""
    original = AcceleratorState.__init__

    def init(self: AcceleratorState, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = init


def main(folder: Path, out: Path, names: list[str]) -> None:
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        shard_on_cpu()
    # Micro-batches of the same rows, whatever the number of processes
    host.shuffle_sequence_dict = lambda rows: rows
    out.mkdir(parents=True, exist_ok=True)
    for name in names:
        train(folder, out, name)
    leave_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
