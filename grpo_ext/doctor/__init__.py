"""`grpo-ext doctor`: which back ends work in this environment, why the others do not, and what would mend them."""

import argparse
import json
from collections.abc import Callable, Sequence

from grpo_ext.doctor.backends import BACKENDS
from grpo_ext.doctor.environment import Environment, collect
from grpo_ext.doctor.report import Findings, as_json, as_text, examine

__all__ = ["BACKENDS", "Environment", "Findings", "collect", "examine", "main"]

# Value of --backend to the rows of `BACKENDS` that it needs on this machine.
CHOICES: dict[str, Callable[[Environment], str]] = {
    "transformers": lambda env: "transformers",
    "unsloth": lambda env: "unsloth" if env.gpus else "unsloth_cpu",
}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="grpo-ext doctor",
        description="Shows versions, hardware and folders, which back ends work here, and for each that does not the "
        "reason and the command that mends it. Exit code 1 when what was asked for cannot run.",
    )
    add = made.add_argument
    add("--backend", choices=list(CHOICES), default="transformers", help="what loads and trains the policy")
    add("--load_in_4bit", action="store_true", help="also ask for 4-bit weights")
    add("--vllm", action="store_true", help="also ask for vLLM in the training process")
    add("--output_dir", default=".", help="folder of a run, which must be writable (default: this one)")
    add("--json", action="store_true", help="print one JSON value instead of text")
    return made


def chosen(args: argparse.Namespace, env: Environment) -> list[str]:
    """Rows of `BACKENDS` that must work for what was asked.

    Args:
        args: the command line.
        env: the environment.
    """
    rows = [CHOICES[args.backend](env)]
    return rows + ["4-bit"] * args.load_in_4bit + ["vllm"] * args.vllm


def main(argv: Sequence[str]) -> int:
    """Collect, examine, print.

    Args:
        argv: the words after `doctor`.

    Returns:
        0, or 1 when the chosen back end cannot run here.
    """
    args = parser().parse_args(argv)
    env = collect(args.output_dir)
    found = examine(env, chosen(args, env))
    print(json.dumps(as_json(found), indent=2) if args.json else as_text(found))
    return 0 if found.works else 1
