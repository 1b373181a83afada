"""GRPO on GSM8K, measured there and out of domain on CMATH, Chinese problems that are never trained on."""

from collections.abc import Sequence
from typing import Any

from grpo_ext.launch import launch, run

DEFAULTS: dict[str, Any] = {"dataset": "gsm8k", "eval_datasets": ["gsm8k", "cmath"]}


def main(argv: Sequence[str]) -> int:
    """Run the recipe on the words after the command and return its exit code."""
    return launch(argv, "cmath", DEFAULTS)


if __name__ == "__main__":
    run(main)
