"""`grpo-ext plan CONFIG.yaml`: what a config comes to before it runs, in words and numbers."""

import argparse
import json
from collections.abc import Sequence

from grpo_ext.plan.memory import in_words as memory_in_words
from grpo_ext.plan.memory import peak
from grpo_ext.plan.planned import Plan, make_plan


def parser() -> argparse.ArgumentParser:
    """The command line, without the recipe's own flags."""
    made = argparse.ArgumentParser(
        prog="grpo-ext plan",
        usage="grpo-ext plan [CONFIG.yaml] [--memory 16GB] [...] [any flag of the recipe]",
        description="Works out what a config of `python -m grpo_ext.recipes.gsm8k` comes to: completions, passes, "
        "tokens and steps, an estimate of the peak memory of one process, and what is known to go wrong. No weights "
        "are loaded. Exit code 1 when the run would stop, be wrong or not fit.",
        allow_abbrev=False,
    )
    add = made.add_argument
    add("--model", metavar="NAME", help="same as --model_name_or_path; also a published shape, such as qwen3-4b")
    add("--memory", metavar="16GB", help="memory of the device (default: that of this machine)")
    add("--device", choices=["cpu", "cuda"], help="kind of device (default: that of this machine)")
    add("--processes", type=int, default=1, help="training processes, one to a device (default: 1)")
    add("--prompt_tokens", type=int, default=200, help="length of a prompt to plan for (default: 200)")
    add("--completion_tokens", type=int, help="length to plan memory for (default: max_completion_length)")
    add("--from_hub", action="store_true", help="fetch the model's config.json if it is not here")
    add("--json", action="store_true", help="print one JSON value instead of text")
    return made


def as_text(plan: Plan) -> str:
    """The plan as lines of text.

    Args:
        plan: a config worked out.
    """
    lines = []
    if plan.batch:
        lines += ["Batch", *(f"  {line}" for line in plan.batch), ""]
    if plan.shape is not None:
        count = (plan.shape.linear + plan.shape.other) / 1e6
        lines += [f"Memory of one process, estimated ({plan.shape.name}, {count:,.0f} M weights)"]
        lines += [f"  {line}" for line in memory_in_words(plan.memory, plan.device, plan.available)]
        lines += [""]
    for title, found in (("Stops the run or makes it wrong", plan.stops), ("To look at", plan.notes)):
        if found:
            lines += [title, *(f"  - {text}" for text in found), ""]
    return "\n".join(lines).rstrip()


def main(argv: Sequence[str]) -> int:
    """Print what a config comes to.

    Args:
        argv: the words after `plan`.

    Returns:
        0, or 1 when the run would stop, be wrong or not fit.
    """
    words = list(argv)
    file = [f"--config={words.pop(0)}"] if words and not words[0].startswith("-") else []
    args, rest = parser().parse_known_args(words)
    if args.processes < 1:
        raise ValueError(f"`--processes` is {args.processes}; it must be at least 1.")
    model = ["--model_name_or_path", args.model] if args.model else []
    plan = make_plan(args, [*file, *rest, *model])
    if args.json:
        shape = None if plan.shape is None else vars(plan.shape)
        print(json.dumps({**vars(plan), "shape": shape, "peak": peak(plan.memory) if plan.memory else None}))
    else:
        print(as_text(plan))
    return 1 if plan.stops else 0
