"""GRPO on MATH, competition problems with answers in LaTeX: `python -m grpo_ext.recipes.math --config FILE`."""

from collections.abc import Sequence
from typing import Any

from grpo_ext.launch import launch, run

DEFAULTS: dict[str, Any] = {"dataset": "math"}


def main(argv: Sequence[str]) -> int:
    """Run the recipe on the words after the command and return its exit code."""
    return launch(argv, "math", DEFAULTS)


if __name__ == "__main__":
    run(main)
