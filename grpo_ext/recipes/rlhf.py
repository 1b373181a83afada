"""RLHF (InstructGPT 2203.02155, with GRPO): supervised tuning, a reward model, reinforcement learning.

`python -m grpo_ext.recipes.rlhf` runs the three stages on the built-in preference pairs, without a network;
`--preferences` takes a file or a data set on the hub, `--stages` some of the stages.
"""

from collections.abc import Sequence
from importlib import import_module

from grpo_ext.launch import prepare, run


def main(argv: Sequence[str]) -> int:
    """Run the recipe on the words after the command and return its exit code."""
    prepare(argv)
    return import_module("grpo_ext.recipes.rlhf_run").main(argv)


if __name__ == "__main__":
    run(main)
