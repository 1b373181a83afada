"""Objectives against each other: `python -m grpo_ext.recipes.compare --variants deepseekmath dr_grpo --seeds 0 1 2`.

Each variant is trained from the same model with each seed until it has generated the same number of tokens, and is
measured on the same held-out problems. The same command again goes on where it was stopped: finished runs are kept.
Further flags go to `grpo_ext.recipes.gsm8k`, which runs each of them, and hold for all variants.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from grpo_ext.checks import at_least, check_output_dir, one_of
from grpo_ext.cli import parse
from grpo_ext.files import write_text
from grpo_ext.flags import flag
from grpo_ext.hub import without_token
from grpo_ext.launch import run
from grpo_ext.presets import PRESETS
from grpo_ext.recipes.gsm8k import QUICKSTART
from grpo_ext.recipes.named_files import named_files
from grpo_ext.report import write_json
from grpo_ext.report.comparison import Comparison, Outcome, curves, read_outcome, table

# Steps at most; the tokens end a run
MAX_STEPS = 1000
# The quickstart with the settings that make a comparison: the same rate throughout, for a schedule would have to know
# the number of steps, and steps small enough that the first ones do not use up the tokens
BASE: dict[str, Any] = {
    **QUICKSTART,
    "gradient_accumulation_steps": 2,
    "lr_scheduler_type": "constant",
    "eval_size": 256,
    "max_steps": MAX_STEPS,
    "completions_mb": 0,
    "sample_every": 0,
}
# Flags of a run that belong to the comparison -> its own flag for them
OWN = {
    "seed": "seeds",
    "preset": "variants",
    "max_generated_tokens": "generated_tokens",
    "resume_from_checkpoint": "output_dir",
}
WITHOUT_REPLACEMENT: dict[str, Any] = {
    "group_generation": "stochastic_beam",
    "scale_rewards": "none",
    "surrogate": "reinforce",
    "beta": 0.0,
}
# What stands beside the presets: fields of the config, over the preset that the row names
VARIANTS: dict[str, dict[str, Any]] = {
    **{name: {"preset": name} for name in PRESETS},
    "deepseekmath_rounds": {"preset": "deepseekmath", "num_rounds": 125, "steps_per_round": 8},
    "ranks": {"advantage_baseline": "rank", "scale_rewards": "none", "loss_type": "grpo", "beta": 0.0},
    # A sum over tokens, as the unbiased estimate has it, and a mean
    "stochastic_beam": {**WITHOUT_REPLACEMENT, "aggregation": "seq_mean_token_sum_norm"},
    "stochastic_beam_mean": {**WITHOUT_REPLACEMENT, "aggregation": "group_sum"},
}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m grpo_ext.recipes.compare",
        description=(__doc__ or "").partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        epilog="All other flags are those of grpo_ext.recipes.gsm8k.",
        allow_abbrev=False,
    )
    add = made.add_argument
    add("--variants", nargs="+", default=["deepseekmath", "dr_grpo"], help=f"Any of: {', '.join(VARIANTS)}.")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], help="One run of each variant with each.")
    add("--generated_tokens", type=int, default=40_000, help="Tokens that each run generates.")
    add("--jobs", type=int, default=1, help="Runs at a time; on CPUs give each OMP_NUM_THREADS.")
    add("--output_dir", default="runs/compare", help="Runs, table and curves.")
    return made


def words(args: argparse.Namespace, variant: str, seed: int, more: Sequence[str]) -> list[str]:
    """The command line of one run.

    Args:
        args: of the comparison.
        variant: a row of `VARIANTS`.
        seed: its seed.
        more: further flags; they come last and so hold over the variant's.

    Returns:
        Words after `python -m grpo_ext.recipes.gsm8k`.
    """
    row = VARIANTS[variant]
    preset = PRESETS.get(row.get("preset", ""), {})
    options = {
        # As flags they would stand over the preset's values
        **{key: value for key, value in BASE.items() if key not in preset},
        **row,
        "seed": seed,
        "max_generated_tokens": args.generated_tokens,
        "output_dir": folder(args, variant, seed),
    }
    given = [[f"--{key}", *map(str, value if isinstance(value, list) else [value])] for key, value in options.items()]
    return [*(word for part in given for word in part), *more]


def folder(args: argparse.Namespace, variant: str, seed: int) -> Path:
    """Where a run lies."""
    return Path(args.output_dir) / variant / f"seed_{seed}"


def one_run(args: argparse.Namespace, variant: str, seed: int, more: Sequence[str]) -> Outcome:
    """Train one variant with one seed, unless it is finished already.

    Args:
        args: of the comparison.
        variant: a row of `VARIANTS`.
        seed: its seed.
        more: further flags.

    Returns:
        What became of it.

    Raises:
        OSError: the run failed; its log says why.
    """
    place = folder(args, variant, seed)
    command = words(args, variant, seed, more)
    shown = shlex.join(["python", "-m", "grpo_ext.recipes.gsm8k", *without_token(command)])
    if not is_finished(place, shown, named_files(command)):
        place.mkdir(parents=True, exist_ok=True)
        log = place / "log.txt"
        with log.open("w", encoding="utf-8") as file:
            code = subprocess.run(
                [sys.executable, "-m", "grpo_ext.recipes.gsm8k", *command], stdout=file, stderr=file, check=False
            ).returncode
        if code:
            raise OSError(f"{variant} with seed {seed} ended with code {code}; {log} says why.")
    outcome = read_outcome(variant, seed, place)
    print(f"{variant}, seed {seed}: {outcome.before:.1%} -> {outcome.after:.1%}", flush=True)
    return outcome


def is_finished(place: Path, command: str, files: Mapping[str, str]) -> bool:
    """Whether a folder holds the whole of the run of this command.

    Args:
        place: the run's folder.
        command: as the run notes it.
        files: digests of the files that it names, as `named_files` gives them.
    """
    path = place / "summary.json"
    if not path.is_file():
        return False
    summary = json.loads(path.read_text(encoding="utf-8"))
    same = summary.get("command") == command and summary.get("files", {}) == files
    return same and summary.get("after") is not None


def check(args: argparse.Namespace, more: Sequence[str]) -> None:
    """Refuse before the first run what a later one would be refused for.

    Args:
        args: of the comparison.
        more: further flags.

    Raises:
        ValueError: a value that does not fit.
    """
    from grpo_ext.recipes.arguments import DEFAULTS, RecipeArguments

    for variant in args.variants:
        one_of("variants", variant, VARIANTS)
    for name in ("variants", "seeds"):
        given = getattr(args, name)
        if len(set(given)) < len(given):
            raise ValueError(f"`{name}` names one twice: {', '.join(map(str, given))}; name each once.")
    for name, instead in OWN.items():
        if flag(more, name) is not None:
            raise ValueError(f"`{name}` would be the same in all runs of a comparison; use --{instead} in its place.")
    for name in ("generated_tokens", "jobs"):
        at_least(name, getattr(args, name))
    check_output_dir(args.output_dir)
    for variant in args.variants:
        parse(RecipeArguments, words(args, variant, args.seeds[0], more), DEFAULTS)


def main(argv: Sequence[str]) -> int:
    """Run what is not there yet, and write `comparison.json`, `comparison.md` and `comparison.png`.

    Args:
        argv: the words after the command.

    Returns:
        Exit code.
    """
    args, more = parser().parse_known_args(argv)
    check(args, more)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    pairs = [(variant, seed) for variant in args.variants for seed in args.seeds]
    with ThreadPoolExecutor(args.jobs) as pool:
        outcomes = list(pool.map(lambda pair: one_run(args, pair[0], pair[1], more), pairs))
    command = shlex.join(["python", "-m", "grpo_ext.recipes.compare", *without_token(argv)])
    found = Comparison(command, args.generated_tokens, outcomes)
    place = Path(args.output_dir)
    write_json(place / "comparison.json", found.as_json())
    write_text(place / "comparison.md", table(found))
    curves(found, place / "comparison.png")
    print(table(found))
    print(f"comparison.json, comparison.md and comparison.png in {place}", flush=True)
    return 0


if __name__ == "__main__":
    run(main)
