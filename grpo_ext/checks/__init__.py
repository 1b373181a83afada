"""Checks of what a run is given, made before the long work begins.

- `values`: one value of a field of a recipe, and the output folder.
- `types`: every field of a dataclass against its annotation.
- `limits`: ranges of numbers.
- `conditions`: names, and what fields ask of each other, that TRL and transformers check in the middle of a run.
- `rows`: the columns and rows of a dataset.
"""

from grpo_ext.checks.conditions import check_company, check_given, check_limits
from grpo_ext.checks.limits import check_numbers
from grpo_ext.checks.rows import (
    check_dataset,
    check_drawn,
    check_no_images,
    check_reward_columns,
    check_size,
    extreme_rows,
)
from grpo_ext.checks.types import brief, check_types, members, typed
from grpo_ext.checks.values import at_least, check_output_dir, choice, one_of

__all__ = [
    "at_least",
    "brief",
    "check_company",
    "check_dataset",
    "check_drawn",
    "check_given",
    "check_limits",
    "check_no_images",
    "check_numbers",
    "check_output_dir",
    "check_reward_columns",
    "check_size",
    "check_types",
    "choice",
    "extreme_rows",
    "members",
    "one_of",
    "typed",
]
