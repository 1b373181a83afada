"""The arithmetic of GRPO's batches: completions, prompts, micro-batches, passes, tokens and steps."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_ext.checks import at_least
from grpo_ext.recipes.problems import DATASETS

# Fields that are 1 or more where they are set
COUNTS = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "num_generations",
    "num_iterations",
    "steps_per_generation",
    "generation_batch_size",
    "max_completion_length",
)


@dataclass(frozen=True)
class Batch:
    """How a run is cut up. A group is the completions of one prompt.

    Attributes:
        micro: completions of one micro-batch on one process.
        accumulation: micro-batches of an optimiser step.
        processes: number of processes.
        group: completions of a prompt.
        parts: micro-batches of a generation (TRL's `steps_per_generation`).
        iterations: times that a generation is trained on.
        problems: prompts of the dataset.
        epochs: passes over it.
        max_steps: optimiser steps, or 0 or less to go by `epochs`.
        completion_tokens: longest completion.
        old_pass: whether the rows are scored once more before training, as the old policy.
        reference_pass: whether they are scored by the reference policy.
    """

    micro: int
    accumulation: int
    processes: int
    group: int
    parts: int
    iterations: int
    problems: int
    epochs: float
    max_steps: int
    completion_tokens: int
    old_pass: bool
    reference_pass: bool

    @property
    def generated(self) -> int:
        """Completions of a generation, over all processes."""
        return self.micro * self.parts * self.processes

    @property
    def trained(self) -> int:
        """Completions that an optimiser step is made of, over all processes."""
        return self.micro * self.accumulation * self.processes

    @property
    def divides(self) -> bool:
        """Whether a generation is made of whole groups."""
        return self.generated % self.group == 0

    @property
    def straddles(self) -> bool:
        """Whether groups are spread over processes."""
        return self.processes > 1 and (self.micro * self.parts) % self.group != 0

    @property
    def steps_a_generation(self) -> float:
        """Optimiser steps on each generation."""
        return self.parts * self.iterations / self.accumulation

    @property
    def steps_an_epoch(self) -> int:
        """Optimiser steps of one pass over the dataset; prompts that fill no whole generation are left out."""
        micro_steps = self.problems // (self.generated // self.group) * self.parts * self.iterations
        return math.ceil(micro_steps / self.accumulation)

    @property
    def steps(self) -> int:
        """Optimiser steps in all."""
        return self.max_steps if self.max_steps > 0 else math.ceil(self.steps_an_epoch * self.epochs)

    @property
    def tokens_a_generation(self) -> int:
        """Tokens that one generation makes at most."""
        return self.generated * self.completion_tokens

    @property
    def tokens(self) -> int:
        """Tokens that the run generates at most."""
        return math.ceil(self.steps / self.steps_a_generation) * self.tokens_a_generation


def batch_of(values: Mapping[str, Any], processes: int = 1) -> Batch:
    """The batch that a config's fields describe, also when they do not divide.

    Args:
        values: fields of the recipe and of `GRPOExtConfig`.
        processes: number of processes.

    Raises:
        ValueError: a count is below 1, or `generation_batch_size` is no multiple of a micro-batch over all processes.
    """
    for name in COUNTS:
        if values[name] is not None:
            at_least(name, values[name])
    micro, accumulation = values["per_device_train_batch_size"], values["gradient_accumulation_steps"]
    parts, size = values["steps_per_generation"], values["generation_batch_size"]
    if size is not None and size % (micro * processes):
        below, above = size // (micro * processes), -(-size // (micro * processes))
        fitting = [str(n * micro * processes) for n in (below, above) if n]
        raise ValueError(
            f"`generation_batch_size` is {size}; it must be a multiple of per_device_train_batch_size {micro} x "
            f"{processes} processes: {' or '.join(fitting)}."
        )
    if parts is None:
        parts = accumulation if size is None else size // (micro * processes)
    iterations, rounds, a_round = values["num_iterations"], values["num_rounds"], values["steps_per_round"]
    once = accumulation % (parts * iterations) == 0
    return Batch(
        micro=micro,
        accumulation=accumulation,
        processes=processes,
        group=values["num_generations"],
        parts=parts,
        iterations=iterations,
        problems=values["train_size"] or problems_in(values["dataset"]),
        epochs=values["num_train_epochs"],
        max_steps=rounds * a_round if rounds > 1 and a_round else values["max_steps"],
        completion_tokens=values["max_completion_length"],
        old_pass=not once,
        reference_pass=values["beta"] != 0.0,
    )


def problems_in(dataset: str) -> int:
    """Problems of a data set's training split, or lines of a file of the user's."""
    if dataset in DATASETS and (size := DATASETS[dataset].train_size) is not None:
        return size
    with Path(dataset).open("rb") as lines:
        return sum(1 for line in lines if line.strip())


def nearest(batch: Batch, values: Mapping[str, Any]) -> list[str]:
    """The smallest changes of one field that make a generation divide into groups, as `field=value`.

    Args:
        batch: a batch that does not divide.
        values: the config's fields.
    """
    rows = batch.generated // batch.parts
    fields = {"num_generations": (batch.group, lambda n: n > 1 and batch.generated % n == 0)}
    if values["generation_batch_size"] is not None:
        size = values["generation_batch_size"]
        fields["generation_batch_size"] = (size, lambda n: n % math.lcm(rows, batch.group) == 0)
    else:
        name = "gradient_accumulation_steps" if values["steps_per_generation"] is None else "steps_per_generation"
        fields[name] = (batch.parts, lambda n: rows * n % batch.group == 0)
        others = batch.parts * batch.processes
        fields["per_device_train_batch_size"] = (batch.micro, lambda n: n * others % batch.group == 0)
    found = []
    for name, (value, allowed) in fields.items():
        below = next((n for n in range(value - 1, 0, -1) if allowed(n)), None)
        above = next((n for n in range(value + 1, 2 * value * batch.group + 2) if allowed(n)), None)
        options = [str(n) for n in (below, above) if n is not None]
        if options:
            found.append(f"{name}={' or '.join(options)}")
    return found


def in_words(batch: Batch, passes: Mapping[str, str]) -> Iterator[str]:
    """The batch as lines of text.

    Args:
        batch: a batch that divides.
        passes: name of a forward pass to what it is made of, for an optimiser step on one process.
    """
    prompts = batch.generated // batch.group
    yield (
        f"A generation makes {batch.generated:,} completions: {_count(prompts, 'prompt')} x {batch.group} "
        f"({_product(batch, batch.parts)})."
    )
    micro = f"{_count(batch.accumulation, 'micro-batch', 'micro-batches')} of {batch.micro}"
    yield (
        f"An optimiser step has {batch.trained:,} completions of {_count(batch.trained / batch.group, 'prompt')}: "
        f"{micro} on {_count(batch.processes, 'process', 'processes')}."
    )
    often = batch.steps_a_generation
    yield (
        f"Each generation serves {_count(often, 'optimiser step')}."
        if often >= 1
        else f"An optimiser step uses {1 / often:g} generations."
    )
    yield "Forward passes of an optimiser step, on each process:"
    yield from (f"    {name}: {text}" for name, text in passes.items())
    yield (
        f"Generated at most {batch.tokens_a_generation:,} tokens a generation ({batch.completion_tokens:,} each), "
        f"{batch.tokens:,} in all."
    )
    an_epoch = batch.steps_an_epoch
    share = batch.steps / an_epoch if an_epoch else math.inf
    yield (
        f"Optimiser steps: {an_epoch:,} an epoch of {batch.problems:,} prompts, {batch.steps:,} in all "
        f"({share:.2f} epochs)."
    )


def _count(number: float, one: str, many: str = "") -> str:
    return f"{number:,g} {one if number == 1 else many or one + 's'}"


def _product(batch: Batch, parts: int) -> str:
    factors = (_count(parts, "micro-batch", "micro-batches"), _count(batch.processes, "process", "processes"))
    return f"{batch.micro} a micro-batch x {' x '.join(factors)}"
