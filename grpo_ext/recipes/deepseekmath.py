"""DeepSeekMath (2402.03300, sec. 4): GRPO on GSM8K and MATH, measured on both and out of domain on CMATH."""

from collections.abc import Sequence
from typing import Any

from grpo_ext.launch import launch, run

DEFAULTS: dict[str, Any] = {
    "preset": "deepseekmath",
    "dataset": "gsm8k+math",
    "eval_datasets": ["gsm8k", "math", "cmath"],
}


def main(argv: Sequence[str]) -> int:
    """Run the recipe on the words after the command and return its exit code."""
    return launch(argv, "deepseekmath", DEFAULTS)


if __name__ == "__main__":
    run(main)
