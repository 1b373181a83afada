"""A run that ends with its tokens instead of its steps, so that objectives are compared at equal generation."""

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class TokenBudget(TrainerCallback):
    """Ends training after the step in which a number of generated tokens is reached.

    Args:
        limit: tokens.
        generated: gives the tokens generated so far, the same number on all processes.
    """

    def __init__(self, limit: int, generated: Callable[[], int]) -> None:
        self._limit, self._generated = limit, generated

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._generated() >= self._limit:
            control.should_training_stop = True
