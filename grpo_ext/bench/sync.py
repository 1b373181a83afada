"""`python -m grpo_ext.bench sync`: what one sync with vLLM sends, merged weights against the adapter alone."""

import argparse
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from grpo_ext import compat
from grpo_ext.bench.shown import checked, columns, command_line, conditions, finish, show
from grpo_ext.bench.worker import load
from grpo_ext.rollouts.vllm.adapters import AdapterFolder
from grpo_ext.rollouts.vllm.base import engine_dtype

SIDES = ("merged", "adapter")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = command_line("sync", __doc__, "Rank of the adapter, on all linear layers.")
    add = made.add_argument
    add("--repeats", type=int, default=5, help="Timed syncs of each side, after one that is not.")
    return made


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Sync by both ways in turn.

    A merged sync merges the adapter, copies every weight that TRL streams into other memory, which is the least an
    engine has to do, and takes the adapter out again. An adapter's sync writes it to the memory-backed folder and
    reads it from there, as vLLM does. What the engine does afterwards is left out on both sides.

    Args:
        args: the command line.

    Returns:
        `merged` and `adapter` with bytes and seconds of a sync, and their ratios.

    Raises:
        ValueError: there is no adapter.
    """
    if args.lora_r < 1:
        raise ValueError(f"`--lora_r` is {args.lora_r}; it must be at least 1, without an adapter nothing is swapped.")
    model, _ = load(args)
    accelerator = Accelerator(cpu=args.device == "cpu")
    folder = AdapterFolder(dtype=engine_dtype(model))
    engine: dict[str, torch.Tensor] = {}
    runs: dict[str, list[tuple[int, float]]] = {side: [] for side in SIDES}
    try:
        for _ in range(args.repeats + 1):
            runs["merged"].append(_merged(model, accelerator, engine))
            runs["adapter"].append(_adapter(model, folder, args.device))
    finally:
        folder.close()
    sides: dict[str, dict[str, Any]] = {
        side: {
            "bytes": found[0][0],
            "seconds": statistics.median(seconds for _, seconds in found[1:]),
            "all_seconds": [round(seconds, 4) for _, seconds in found[1:]],
        }
        for side, found in runs.items()
    }
    merged, adapter = (sides[side] for side in SIDES)
    return {
        **sides,
        "byte_ratio": merged["bytes"] / adapter["bytes"],
        "time_ratio": merged["seconds"] / adapter["seconds"],
        **conditions(args),
    }


def _merged(model: Any, accelerator: Accelerator, engine: dict[str, torch.Tensor]) -> tuple[int, float]:
    """(bytes, seconds) of a sync as TRL does it, with an engine that only stores what it is given."""
    sent = 0
    finish(model.device.type)
    started = time.perf_counter()
    with torch.no_grad():
        for name, weight in compat.streamed_weights(model, accelerator):
            sent += weight.numel() * weight.element_size()
            if name in engine:
                engine[name].copy_(weight)
            else:
                engine[name] = weight.clone()
    finish(model.device.type)
    return sent, time.perf_counter() - started


def _adapter(model: Any, folder: AdapterFolder, device: str) -> tuple[int, float]:
    """(bytes, seconds) of a sync of ours, with a reader in the engine's place."""
    finish(model.device.type)
    started = time.perf_counter()
    written = folder.write(model)
    load_file(f"{written.path}/adapter_model.safetensors", device=device)
    finish(model.device.type)
    return written.size, time.perf_counter() - started


def table(result: dict[str, Any]) -> str:
    """The result as a table in plain text.

    Args:
        result: what `measure` returned.

    Returns:
        Lines of text.
    """
    merged, adapter = (result[side] for side in SIDES)
    rows = [
        (
            "megabytes a sync",
            f"{merged['bytes'] / 1e6:.1f}",
            f"{adapter['bytes'] / 1e6:.1f}",
            f"{result['byte_ratio']:.1f}x",
        ),
        (
            "seconds a sync (median)",
            f"{merged['seconds']:.3f}",
            f"{adapter['seconds']:.3f}",
            f"{result['time_ratio']:.1f}x",
        ),
    ]
    return columns("merged", "adapter", rows)


def main(argv: Sequence[str]) -> int:
    """Measure, print a table and one JSON line.

    Args:
        argv: the words after the benchmark's name.

    Returns:
        0.
    """
    return show(measure(checked(parser().parse_args(argv))), table)
