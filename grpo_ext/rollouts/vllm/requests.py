"""Rows of TRL as requests of vLLM: each different prompt once, for all its completions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from grpo_ext.rollouts.strategies import GroupSize

# Values of `group_generation` that vLLM has not, and why.
REFUSED_STRATEGIES = {
    "diverse_beam": "its search has no groups of beams that avoid each other's tokens",
    "stochastic_beam": "its search adds no Gumbel noise and returns no inclusion weights",
}


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn, under TRL's names.

    Attributes:
        temperature: divisor of the logits.
        top_p: mass of the nucleus.
        top_k: most probable tokens kept; 0 keeps all.
        min_p: least probability kept, as a share of the largest.
        repetition_penalty: divisor of the logits of tokens that occurred.
        max_tokens: longest completion.
        extra: TRL's `generation_kwargs`, which override the others.
        regex: TRL's `vllm_structured_outputs_regex`.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int = 16
    extra: dict[str, Any] = field(default_factory=dict)
    regex: str | None = None

    def fields(self, n: int, max_tokens: int) -> dict[str, Any]:
        """Fields of one request for `n` samples of at most `max_tokens` tokens."""
        named = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
        found: dict[str, Any] = {name: getattr(self, name) for name in named}
        found.update({"logprobs": 0, **self.extra, "n": n, "max_tokens": max_tokens})
        if self.regex is not None:
            found["structured_outputs"] = {"regex": self.regex}
        return found


@dataclass(frozen=True)
class GroupSearch:
    """Which part of a training group is beams.

    Attributes:
        strategy: value of `group_generation`, none of `REFUSED_STRATEGIES`.
        size: numbers of a group; not used by "sampling". vLLM counts the prompt in the length that its exponent
            `length_penalty` is put on.
    """

    strategy: str = "sampling"
    size: GroupSize | None = None

    @property
    def width(self) -> int:
        """Beams of the search; 0 without one."""
        return 0 if self.size is None or self.strategy == "sampling" else self.size.beams


@dataclass(frozen=True)
class Request:
    """One prompt, sent once for all its completions.

    Attributes:
        prompt: token ids.
        n: completions, or beams kept.
        max_tokens: longest completion that the window leaves room for.
        row: first row of the prompt, for messages.
        width: beams of the search; 0 for samples.
        length_penalty: of the search.
    """

    prompt: tuple[int, ...]
    n: int
    max_tokens: int
    row: int
    width: int = 0
    length_penalty: float = 1.0


@dataclass(frozen=True)
class Completion:
    """One completion.

    Attributes:
        tokens: token ids, the end token included.
        logps: their log-probabilities under the distribution that was sampled from; None where unknown.
    """

    tokens: list[int]
    logps: list[float | None]


Answers = list[list[Completion]]


def runs(prompts: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """(first row, length) of each run of equal prompts.

    Args:
        prompts: token ids of each row.

    Returns:
        The runs in order; their lengths add up to the rows.
    """
    starts = [i for i, prompt in enumerate(prompts) if i == 0 or list(prompt) != list(prompts[i - 1])]
    return [(start, end - start) for start, end in zip(starts, [*starts[1:], len(prompts)], strict=True)]


def sample_requests(prompts: Sequence[Sequence[int]], window: int, max_tokens: int) -> list[Request]:
    """A request for each run of equal prompts, whatever its length: samples are independent of each other.

    Args:
        prompts: token ids of each row.
        window: longest prompt with completion that the engine takes.
        max_tokens: longest completion asked for.

    Returns:
        Requests whose `n` add up to the rows, in their order.

    Raises:
        ValueError: a prompt fills the window.
    """
    return [
        Request(tuple(prompts[row]), n, room(prompts[row], row, window, max_tokens), row) for row, n in runs(prompts)
    ]


def search_requests(
    prompts: Sequence[Sequence[int]], search: GroupSearch, window: int, max_tokens: int
) -> list[tuple[Request, Request | None]]:
    """For each group a search, and a request for the samples beside it where the group has some.

    Args:
        prompts: token ids of each row.
        search: which part of a group is beams.
        window: longest prompt with completion that the engine takes.
        max_tokens: longest completion asked for.

    Returns:
        Pairs in the order of the groups.

    Raises:
        ValueError: a prompt fills the window, or a group is not whole.
    """
    assert search.size is not None
    size, width, penalty = search.size.completions, search.size.beams, search.size.length_penalty
    kept = min(width, size)
    found = []
    for row in range(0, len(prompts), size):
        group = prompts[row : row + size]
        if len(group) < size or any(list(other) != list(group[0]) for other in group):
            raise ValueError(
                f"`group_generation` {search.strategy!r} needs the {size} rows of a group in one process, and rows "
                f"{row} to {row + len(group) - 1} hold several prompts or a part of one; make "
                "per_device_train_batch_size * steps_per_generation a multiple of num_generations."
            )
        left = room(group[0], row, window, max_tokens)
        beams = Request(tuple(group[0]), kept, left, row, width, penalty)
        found.append((beams, Request(tuple(group[0]), size - kept, left, row) if kept < size else None))
    return found


def room(prompt: Sequence[int], row: int, window: int, max_tokens: int) -> int:
    """Tokens that a completion may have: `max_tokens`, or fewer where the window ends.

    Args:
        prompt: token ids.
        row: of the prompt, for the message.
        window: longest prompt with completion that the engine takes.
        max_tokens: longest completion asked for.

    Returns:
        Their number, at least 1.

    Raises:
        ValueError: the prompt leaves room for none.
    """
    if len(prompt) >= window:
        raise ValueError(
            f"The prompt of row {row} has {len(prompt)} tokens, and the vLLM engine's window is {window} for prompt "
            "and completion together; drop such rows, or raise `vllm_max_model_length` (a server's --max-model-len)."
        )
    return min(max_tokens, window - len(prompt))


def number(value: Any) -> float | None:
    """A log-probability, or None where it is missing or no number, as TRL wants it.

    Args:
        value: as vLLM tells it.

    Returns:
        Nats, or None.
    """
    return None if value is None or math.isnan(value) else float(value)
