"""One side of the step benchmark, in a process of its own: optimiser steps on given rollouts, on command."""

import ctypes
import gc
import os
import platform
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.utils.flop_counter import FlopCounterMode
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from grpo_ext.bench.rollouts import Rollouts
from grpo_ext.bench.shapes import SHAPES, random_model
from grpo_ext.bench.shown import finish
from grpo_ext.config import GRPOExtConfig
from grpo_ext.models import load_policy, resolve_model, tiny_tokenizer
from grpo_ext.models.policy import DTYPES, add_lora
from grpo_ext.trainer import GRPOExtTrainer

SIDES: dict[str, tuple[type[GRPOTrainer], type[GRPOConfig]]] = {
    "stock": (GRPOTrainer, GRPOConfig),
    "ours": (GRPOExtTrainer, GRPOExtConfig),
}

# The step that is counted; those after it are timed
COUNTED = 2


def _attention(query: Any, key: Any, value: Any, *rest: Any, **options: Any) -> int:
    """Q Kᵀ and P V of a causal or full block; a causal one is counted in full, as torch does on a GPU."""
    batch, heads, length, width = query
    return 4 * batch * heads * length * key[2] * width


def _attention_backward(grad: Any, query: Any, key: Any, *rest: Any, **options: Any) -> int:
    # Q Kᵀ again, dV, dP, dQ and dK
    return 5 * _attention(query, key, None) // 2


# torch counts the attention kernels of GPUs alone
CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


def _status(name: str) -> int:
    """A line of /proc/self/status in bytes; 0 where there is none."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name)), 0)


def _forget_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif os.access("/proc/self/clear_refs", os.W_OK):
        Path("/proc/self/clear_refs").write_text("5")


def _give_back_memory() -> None:
    """Hand freed memory back to the system, which the waiting side would hold on to while the other one works."""
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def _peak(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device == "cuda" else _status("VmHWM")


def _held(device: str) -> int:
    return torch.cuda.memory_allocated() if device == "cuda" else _status("VmRSS")


class _OnCommand(TrainerCallback):
    """Runs each step when told to and reports what it took.

    The first step warms up; the second counts floating-point work and keeps the gradients, which costs time.
    """

    def __init__(self, connection: Connection, args: Any, gradients: Path) -> None:
        self.connection, self.args, self.gradients = connection, args, gradients
        self.tokens: list[int] = []
        self.flops: FlopCounterMode | None = None
        self.base = self.started = 0.0
        self.steps = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        model.get_input_embeddings().register_forward_hook(
            lambda _, inputs, out: self.tokens.append(inputs[0].numel())
        )
        self.base = _held(self.args.device)
        self.connection.send("ready")

    def on_step_begin(self, *_: Any, **kwargs: Any) -> None:
        self.connection.recv()
        self.tokens.clear()
        _forget_peak(self.args.device)
        self.steps += 1
        if self.steps == COUNTED:
            self.flops = FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)
            self.flops.__enter__()
        finish(self.args.device)
        self.started = time.perf_counter()

    def on_pre_optimizer_step(self, *_: Any, model: Any = None, **kwargs: Any) -> None:
        if self.steps == COUNTED:
            found = {n: w.grad.float().cpu() for n, w in model.named_parameters() if w.grad is not None}
            torch.save(found, self.gradients)

    def on_step_end(self, *_: Any, **kwargs: Any) -> None:
        finish(self.args.device)
        report: dict[str, Any] = {"seconds": time.perf_counter() - self.started, "tokens": list(self.tokens)}
        report["memory"] = _peak(self.args.device) - self.base
        if self.flops is not None:
            self.flops.__exit__(None, None, None)
            report["flops"] = self.flops.get_total_flops()
            self.flops = None
        _give_back_memory()
        self.connection.send(report)


def load(args: Any) -> tuple[Any, Any]:
    """The benchmark's policy, with or without an adapter, and a tokenizer.

    Args:
        args: arguments of the benchmark.

    Returns:
        Model and tokenizer.
    """
    # The adapter's first factor is drawn, and must be the same on both sides
    torch.manual_seed(0)
    if args.model not in SHAPES:
        return load_policy(resolve_model(args.model), dtype=args.dtype, lora_r=args.lora_r, device=args.device)
    dtype = DTYPES[args.dtype]
    assert isinstance(dtype, torch.dtype)
    model = random_model(args.model, dtype, args.device)
    if args.lora_r:
        return add_lora(model, args.lora_r), tiny_tokenizer()
    return model, tiny_tokenizer()


def serve(side: str, args: Any, rollouts: Rollouts, folder: str, connection: Connection) -> None:
    """Train on the same rollouts at every step, one step for each word that arrives.

    Args:
        side: row of `SIDES`.
        args: arguments of the benchmark.
        rollouts: rows of one generation batch.
        folder: where gradients go, as `<side>.pt`.
        connection: takes a word per step, gives "ready" and then a report per step.
    """
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    trainer_class, config_class = SIDES[side]
    model, tokenizer = load(args)
    if args.lora_r:
        # A fresh adapter has B = 0, and with it no gradient for A
        generator = torch.Generator().manual_seed(0)
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                with torch.no_grad():
                    weight.copy_(torch.randn(weight.shape, generator=generator) * 0.01)

    def replay(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        return {"prompt_ids": rollouts.prompts, "completion_ids": rollouts.completions, "logprobs": None}

    def reward(completions: list[Any], **columns: Any) -> list[float]:
        return torch.rand(len(completions), generator=torch.Generator().manual_seed(1)).tolist()

    fields = _fields(args, len(rollouts.prompts)) | ({"scoring": args.scoring} if side == "ours" else {})
    trainer = trainer_class(
        model=model,
        reward_funcs=reward,
        args=config_class(output_dir=f"{folder}/{side}", **fields),
        train_dataset=Dataset.from_dict({"prompt": ["?"] * args.prompts}),
        processing_class=tokenizer,
        rollout_func=replay,
    )
    trainer.add_callback(_OnCommand(connection, args, Path(folder) / f"{side}.pt"))
    trainer.train()


def _fields(args: Any, rows: int) -> dict[str, Any]:
    """The config of both sides."""
    return {
        "per_device_train_batch_size": args.micro_batch,
        "gradient_accumulation_steps": rows // args.micro_batch,
        "num_generations": args.group_size,
        "max_completion_length": args.completion_cap,
        "beta": args.beta,
        "learning_rate": 0.0,
        "max_grad_norm": 0.0,
        "max_steps": args.repeats + COUNTED,
        "bf16": args.dtype == "bfloat16",
        "fp16": args.dtype == "float16",
        "gradient_checkpointing": args.gradient_checkpointing,
        "use_cpu": args.device == "cpu",
        "report_to": "none",
        "logging_steps": 10**6,
        "save_strategy": "no",
        "disable_tqdm": True,
    }
