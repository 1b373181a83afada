"""`python -m grpo_ext.bench generate`: sampled groups a second, TRL's generate and ours on the same prompts."""

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from grpo_ext.bench.rollouts import synthetic
from grpo_ext.bench.shapes import SHAPES
from grpo_ext.bench.shown import checked, columns, command_line, conditions, finish, show
from grpo_ext.bench.worker import SIDES, load


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = command_line("generate", __doc__, "Rank of the adapter; 0 is none.")
    add = made.add_argument
    add("--group_size", type=int, default=64, help="Completions a prompt.")
    add("--prompts", type=int, default=1, help="Prompts a batch.")
    add("--prompt_length", type=int, default=120, help="Tokens of each prompt.")
    add("--completion_mean", type=int, default=100, help="Mean length; a random share of the vocabulary ends a row.")
    add("--completion_cap", type=int, default=256, help="Longest completion.")
    add("--repeats", type=int, default=3, help="Timed batches of each side, after one that is not.")
    add("--seed", type=int, default=0, help="Of the prompts and the draws.")
    return made


def _timed(base: type[GRPOTrainer]) -> type[GRPOTrainer]:
    class Timed(base):
        """A trainer whose generation can be called on its own."""

        def batch(self, prompts: list[list[int]], seed: int) -> tuple[float, list[list[int]]]:
            torch.manual_seed(seed)
            finish(self.accelerator.device.type)
            started = time.perf_counter()
            completions, _ = self._generate_single_turn(prompts, None, {}, self.num_generations)
            finish(self.accelerator.device.type)
            return time.perf_counter() - started, completions

    return Timed


def make(side: str, args: argparse.Namespace, ends: list[int], folder: str) -> Any:
    """A trainer of one side with a model of its own.

    Args:
        side: row of `SIDES`.
        args: the command line.
        ends: token ids that end a completion.
        folder: where the trainer may write.

    Returns:
        The trainer.
    """
    trainer_class, config_class = SIDES[side]
    model, tokenizer = load(args)
    rows = args.prompts * args.group_size
    config: GRPOConfig = config_class(
        output_dir=f"{folder}/{side}",
        per_device_train_batch_size=rows,
        num_generations=args.group_size,
        max_completion_length=args.completion_cap,
        bf16=args.dtype == "bfloat16",
        fp16=args.dtype == "float16",
        use_cpu=args.device == "cpu",
        gradient_checkpointing=False,
        report_to="none",
        generation_kwargs={"eos_token_id": ends},
    )
    return _timed(trainer_class)(
        model=model,
        reward_funcs=lambda completions, **columns: [0.0] * len(completions),
        args=config,
        train_dataset=Dataset.from_dict({"prompt": ["?"] * args.prompts}),
        processing_class=tokenizer,
    )


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Run both sides in turn.

    Args:
        args: the command line.

    Returns:
        `stock` and `ours` with seconds, groups a second and tokens a second, and their ratio.
    """
    vocabulary = SHAPES[args.model]["vocab_size"] if args.model in SHAPES else 4096
    prompts = synthetic(args.prompts, args.group_size, args.prompt_length, 1, 1, 0.0, vocabulary, args.seed).prompts
    shuffled = torch.randperm(vocabulary, generator=torch.Generator().manual_seed(args.seed))
    ends = shuffled[: max(vocabulary // args.completion_mean, 1)].tolist()
    found: dict[str, list[tuple[float, list[list[int]]]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        trainers = {side: make(side, args, ends, folder) for side in SIDES}
        for repeat in range(args.repeats + 1):
            for side, trainer in trainers.items():
                found[side].append(trainer.batch(prompts, args.seed + repeat))
    sides = {side: _summary(batches[1:], args, set(ends)) for side, batches in found.items()}
    return {
        **sides,
        "ratio": sides["ours"]["groups_a_second"] / sides["stock"]["groups_a_second"],
        **conditions(args),
    }


def _summary(batches: list[tuple[float, list[list[int]]]], args: argparse.Namespace, ends: set[int]) -> dict[str, Any]:
    lengths = [
        [next((place + 1 for place, token in enumerate(row) if token in ends), len(row)) for row in rows]
        for _, rows in batches
    ]
    return {
        "seconds": statistics.median(seconds for seconds, _ in batches),
        "all_seconds": [round(seconds, 2) for seconds, _ in batches],
        "groups_a_second": statistics.median(args.prompts / seconds for seconds, _ in batches),
        "tokens_a_second": statistics.median(
            sum(row) / seconds for row, (seconds, _) in zip(lengths, batches, strict=True)
        ),
        "mean_length": statistics.mean(map(statistics.mean, lengths)),
    }


def table(result: dict[str, Any]) -> str:
    """The result as a table in plain text.

    Args:
        result: what `measure` returned.

    Returns:
        Lines of text.
    """
    stock, ours = result["stock"], result["ours"]
    rows = []
    for name, key, digits in (
        ("seconds a batch (median)", "seconds", 2),
        ("groups a second", "groups_a_second", 3),
        ("tokens a second", "tokens_a_second", 0),
    ):
        ratio = stock[key] / ours[key] if key == "seconds" else ours[key] / stock[key]
        rows.append((name, f"{stock[key]:.{digits}f}", f"{ours[key]:.{digits}f}", f"{ratio:.2f}x"))
    rows.append(("mean length", f"{stock['mean_length']:.0f}", f"{ours['mean_length']:.0f}", ""))
    return columns("TRL", "grpo_ext", rows)


def main(argv: Sequence[str]) -> int:
    """Measure, print a table and one JSON line.

    Args:
        argv: the words after the benchmark's name.

    Returns:
        0.
    """
    return show(measure(checked(parser().parse_args(argv))), table)
