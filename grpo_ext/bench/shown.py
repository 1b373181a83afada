"""What the benchmarks share: the beginning of a command line, the conditions of a run, a table, one JSON line."""

import argparse
import json
import platform
from collections.abc import Callable, Sequence
from typing import Any

import torch

from grpo_ext.bench.shapes import SHAPES
from grpo_ext.checks import at_least
from grpo_ext.report import versions

# Field of a benchmark -> its smallest value
LEAST = {
    "lora_r": 0,
    "group_size": 2,
    "prompts": 1,
    "prompt_length": 1,
    "completion_mean": 1,
    "completion_cap": 1,
    "micro_batch": 1,
    "repeats": 1,
}


def command_line(name: str, description: str | None, lora_help: str) -> argparse.ArgumentParser:
    """A parser with the options on the model and the device.

    Args:
        name: of the benchmark.
        description: what it measures.
        lora_help: what the rank of the adapter means there.

    Returns:
        The parser.
    """
    made = argparse.ArgumentParser(
        prog=f"python -m grpo_ext.bench {name}",
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = made.add_argument
    add("--model", default="smollm2-135m", help=f"Folder, hub name, or random weights: {', '.join(SHAPES)}.")
    add("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"], help="Of the weights.")
    add("--lora_r", type=int, default=16, help=lora_help)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", default=device, choices=["cpu", "cuda"], help="What both sides run on.")
    return made


def checked(args: argparse.Namespace) -> argparse.Namespace:
    """Refuse counts that leave nothing to measure, and a device that is not there.

    Args:
        args: the command line.

    Returns:
        The same.

    Raises:
        ValueError: in one sentence.
    """
    for name, least in LEAST.items():
        if name in args:
            at_least(name, getattr(args, name), least)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("`device` is 'cuda', but torch finds no such device here; use cpu.")
    return args


def conditions(args: argparse.Namespace) -> dict[str, Any]:
    """What a figure was measured with: `arguments`, `hardware`, `threads` and `versions`.

    Args:
        args: the command line.
    """
    return {
        "arguments": vars(args),
        "hardware": torch.cuda.get_device_name() if args.device == "cuda" else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }


def finish(device: str) -> None:
    """Wait for what a GPU is still doing.

    Args:
        device: cpu or cuda.
    """
    if device == "cuda":
        torch.cuda.synchronize()


def columns(left: str, right: str, rows: Sequence[tuple[str, str, str, str]]) -> str:
    """Two sides and their ratio as a table in plain text.

    Args:
        left: name of one side.
        right: name of the other.
        rows: what was measured, both sides, ratio.

    Returns:
        Lines of text.
    """
    lines = [("", left, right, "ratio"), *rows]
    return "\n".join(f"{name:34}{one:>14}{other:>14}{ratio:>10}" for name, one, other, ratio in lines)


def show(result: dict[str, Any], table: Callable[[dict[str, Any]], str]) -> int:
    """Print a table and one JSON line.

    Args:
        result: what was measured.
        table: makes lines of text of it.

    Returns:
        Exit code 0.
    """
    print(table(result))
    print(json.dumps(result))
    return 0
