"""`python -m grpo_ext.bench step`: one optimisation step of stock TRL and of ours on the same rollouts."""

import argparse
import multiprocessing
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import trl
from packaging.version import Version

from grpo_ext.bench.rollouts import Rollouts, synthetic
from grpo_ext.bench.shapes import SHAPES
from grpo_ext.bench.shown import checked, columns, command_line, conditions, show
from grpo_ext.bench.worker import COUNTED, serve

SIDES = ("stock", "ours")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = command_line("step", __doc__, "Rank of the adapter; 0 trains all weights.")
    add = made.add_argument
    add("--group_size", type=int, default=64, help="Completions a prompt.")
    add("--prompts", type=int, default=1, help="Prompts a step.")
    add("--prompt_length", type=int, default=120, help="Tokens of each prompt.")
    add("--completion_mean", type=int, default=100, help="Mean of the lognormal completion lengths, in tokens.")
    add("--completion_cap", type=int, default=256, help="Longest completion, which one row has.")
    add("--shared", type=float, default=0.0, help="Share of a completion in common with an earlier one, as in beams.")
    add("--micro_batch", type=int, default=16, help="per_device_train_batch_size of both sides.")
    add("--beta", type=float, default=0.04, help="Above 0 adds the reference pass.")
    add("--gradient_checkpointing", action="store_true", help="On both sides.")
    add("--scoring", default="auto", choices=["auto", "tree", "padded"], help="Path of our side.")
    add("--repeats", type=int, default=3, help="Timed steps of each side, after two that are not.")
    add("--seed", type=int, default=0, help="Of the rollouts.")
    return made


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Run both sides in turn, each in its own process, which waits while the other one works.

    Args:
        args: the command line.

    Returns:
        `stock` and `ours` with seconds, memory, tokens of each pass and floating-point work, and their ratios.

    Raises:
        ValueError: the rows of a step do not divide into micro-batches, or stock TRL cannot run here.
        RuntimeError: a side stopped.
    """
    rows = args.prompts * args.group_size
    if not 0.0 <= args.shared <= 1.0:
        raise ValueError(f"`--shared` is {args.shared}; it must be from 0 to 1.")
    if rows % args.micro_batch:
        raise ValueError(f"`--micro_batch` is {args.micro_batch}; it must divide the {rows} rows of a step.")
    if args.device == "cpu" and Version(trl.__version__) < Version("1.16"):
        raise ValueError(f"TRL {trl.__version__} itself cannot score on a CPU; compare with TRL 1.16 or on a GPU.")
    vocabulary = SHAPES[args.model]["vocab_size"] if args.model in SHAPES else 4096
    rollouts = synthetic(
        args.prompts,
        args.group_size,
        args.prompt_length,
        args.completion_mean,
        args.completion_cap,
        args.shared,
        vocabulary,
        args.seed,
    )
    reports, difference = _alternate(args, rollouts)
    sides = {side: _summary(found) for side, found in reports.items()}
    stock, ours = (sides[side] for side in SIDES)
    return {
        **sides,
        "time_ratio": stock["seconds"] / ours["seconds"],
        "memory_ratio": stock["memory"] / max(ours["memory"], 1),
        "token_ratio": sum(stock["tokens"]) / sum(ours["tokens"]),
        "flop_ratio": stock["flops"] / ours["flops"],
        "gradient_difference": difference,
        "rows_tokens": rollouts.rows_tokens,
        **conditions(args),
    }


def _alternate(args: argparse.Namespace, rollouts: Rollouts) -> tuple[dict[str, list[dict[str, Any]]], float]:
    """The reports of both sides, and how far their gradients are apart."""
    context = multiprocessing.get_context("spawn")
    reports: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        lines = {}
        for side in SIDES:
            here, there = context.Pipe()
            process = context.Process(target=serve, args=(side, args, rollouts, folder, there), daemon=True)
            process.start()
            there.close()
            lines[side] = here
            _hear(side, here)
        for _ in range(args.repeats + COUNTED):
            for side, line in lines.items():
                line.send("go")
                reports[side].append(_hear(side, line))
        stock, ours = (torch.load(Path(folder) / f"{side}.pt", weights_only=True) for side in SIDES)
    return reports, _gradient_difference(stock, ours)


def _hear(side: str, line: Any) -> Any:
    try:
        return line.recv()
    except EOFError:
        raise RuntimeError(f"The {side} side stopped; its own message is above.") from None


def _summary(reports: list[dict[str, Any]]) -> dict[str, Any]:
    counted, timed = reports[COUNTED - 1], reports[COUNTED:]
    return {
        "seconds": statistics.median(report["seconds"] for report in timed),
        "all_seconds": [round(report["seconds"], 2) for report in timed],
        "memory": max(report["memory"] for report in timed),
        "tokens": counted["tokens"],
        "flops": counted["flops"],
    }


def _gradient_difference(stock: dict[str, torch.Tensor], ours: dict[str, torch.Tensor]) -> float:
    """‖ours − stock‖ / ‖stock‖ over all gradients."""
    apart = sum((ours[name] - gradient).pow(2).sum().item() for name, gradient in stock.items())
    return (apart / sum(gradient.pow(2).sum().item() for gradient in stock.values())) ** 0.5


def table(result: dict[str, Any]) -> str:
    """The result as a table in plain text.

    Args:
        result: what `measure` returned.

    Returns:
        Lines of text.
    """
    stock, ours = (result[side] for side in SIDES)
    rows = [
        (
            "seconds a step (median)",
            f"{stock['seconds']:.2f}",
            f"{ours['seconds']:.2f}",
            f"{result['time_ratio']:.2f}x",
        ),
        (
            "peak memory above the model, GB",
            f"{stock['memory'] / 1e9:.2f}",
            f"{ours['memory'] / 1e9:.2f}",
            f"{result['memory_ratio']:.2f}x",
        ),
        (
            "tokens through the model",
            f"{sum(stock['tokens']):,}",
            f"{sum(ours['tokens']):,}",
            f"{result['token_ratio']:.2f}x",
        ),
        (
            "floating-point work, TFLOP",
            f"{stock['flops'] / 1e12:.2f}",
            f"{ours['flops'] / 1e12:.2f}",
            f"{result['flop_ratio']:.2f}x",
        ),
    ]
    rows.append(("relative difference of gradients", "", "", f"{result['gradient_difference']:.1e}"))
    return columns("stock TRL", "grpo_ext", rows)


def main(argv: Sequence[str]) -> int:
    """Measure, print a table and one JSON line.

    Args:
        argv: the words after the benchmark's name.

    Returns:
        0.
    """
    return show(measure(checked(parser().parse_args(argv))), table)
