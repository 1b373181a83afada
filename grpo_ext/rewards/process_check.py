"""A check of what a process reward returned, so that a bad value is named where it arises."""

from collections.abc import Sequence
from typing import Any

from grpo_ext.rewards.checked import one_reward
from grpo_ext.rewards.steps import Step


def checked_steps(name: str | None, found: Any, steps: Sequence[Sequence[Step]]) -> list[list[float | None]]:
    """Step rewards as floats and `None`s.

    Args:
        name: of the process reward.
        found: what it returned.
        steps: for each completion its steps.

    Returns:
        One list a completion, with one entry a step.

    Raises:
        ValueError: the shape differs, or a value is neither None nor a finite number.
    """
    say = "return for each completion one finite number or None a step."
    if not isinstance(found, Sequence) or isinstance(found, str) or len(found) != len(steps):
        raise ValueError(f"process reward {name!r} did not return a list for each of {len(steps)} completions; {say}")
    result: list[list[float | None]] = []
    for row, (rewards, of_row) in enumerate(zip(found, steps, strict=True)):
        if not isinstance(rewards, Sequence) or isinstance(rewards, str) or len(rewards) != len(of_row):
            count = len(rewards) if isinstance(rewards, Sequence) else type(rewards).__name__
            raise ValueError(
                f"process reward {name!r} returned {count} rewards for the {len(of_row)} steps of row {row}; {say}"
            )
        of, place = f"process reward {name!r}", f"a step of row {row}"
        result.append([one_reward(of, value, place, say) for value in rewards])
    return result
