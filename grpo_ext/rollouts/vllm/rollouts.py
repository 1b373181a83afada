"""What both vLLM back ends share: the place of TRL's `VLLMGeneration`, with an adapter in the place of weights."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from grpo_ext.rollouts.ends import length_until_end
from grpo_ext.rollouts.vllm.adapters import Adapter
from grpo_ext.rollouts.vllm.requests import (
    Answers,
    Completion,
    GroupSearch,
    Request,
    Sampling,
    sample_requests,
    search_requests,
)

logger = logging.getLogger("grpo_ext")

Rows = tuple[list[list[int]], list[list[int]], list[list[list[float | None]]], None]


class AdapterRollouts(ABC):
    """Stands where TRL's `VLLMGeneration` stands in the trainer; a back end adds the abstract methods.

    Args:
        model: policy with the adapter, not wrapped; its mode tells training from evaluation.
        sampling: how tokens are drawn.
        search: which part of a training group is beams.
        ends: tokens that end a completion, the tokenizer's own first.

    Attributes:
        window: longest prompt with completion that the engine takes.
        adapter: what the engine holds, or None before the first `sync_weights`.
    """

    window: int
    adapter: Adapter | None = None

    def __init__(self, model: Any, sampling: Sampling, search: GroupSearch, ends: Sequence[int]) -> None:
        self.model, self.sampling, self.search, self.ends = model, sampling, search, list(ends)
        self._told: set[str] = set()

    def generate(
        self, prompts: list[list[int]], images: list[Any] | None, num_generations: int, profiler: Any = None
    ) -> Rows:
        """Completions of all rows, as TRL asks for them.

        Args:
            prompts: token ids of each row; those of a group stand next to each other.
            images: must be None.
            num_generations: rows of a group; 1 in the later turns of a conversation with tools.
            profiler: context to generate in.

        Returns:
            Token ids of the prompts, token ids of the completions, log-probabilities (R, T, 1), and None.

        Raises:
            ValueError: images, a prompt that fills the engine's window, or a group in parts that needs to be whole.
        """
        if images is not None and any(image is not None for image in images):
            raise ValueError("`vllm_sync` 'adapter' sends token ids alone; with images leave it unset.")
        with profiler or nullcontext():
            if self.search.strategy == "sampling" or num_generations == 1 or not self.model.training:
                completions = self._samples(prompts)
            else:
                completions = self._groups(prompts)
        self._tell_short(prompts)
        completions = [self._not_empty(completion) for completion in completions]
        logps = [[[logp] for logp in completion.logps] for completion in completions]
        return [list(p) for p in prompts], [completion.tokens for completion in completions], logps, None

    def _samples(self, prompts: list[list[int]]) -> list[Completion]:
        requests = sample_requests(prompts, self.window, self.sampling.max_tokens)
        return [row for answer in self.sample(requests) for row in answer]

    def _groups(self, prompts: list[list[int]]) -> list[Completion]:
        pairs = search_requests(prompts, self.search, self.window, self.sampling.max_tokens)
        beams = self.beam_search([beams for beams, _ in pairs])
        rest = [samples for _, samples in pairs if samples is not None]
        others = iter(self.sample(rest) if rest else [])
        rows = []
        for (request, samples), found in zip(pairs, beams, strict=True):
            rows += self._unique(found, request.n)
            rows += next(others) if samples is not None else []
        return rows

    def _unique(self, found: list[Completion], count: int) -> list[Completion]:
        """The best `count` different beams; where there are fewer, they are repeated in turn."""
        # The search knows one end token, a model may have several
        firsts: dict[tuple[int, ...], Completion] = {}
        for completion in map(self._ended, found):
            firsts.setdefault(tuple(completion.tokens), completion)
        different = list(firsts.values())
        if len(different) < count:
            logger.warning(
                "Beams: a prompt has %d different completions, fewer than %d; they are repeated.",
                len(different),
                count,
            )
        return [different[i % len(different)] for i in range(count)]

    def _ended(self, completion: Completion) -> Completion:
        """The completion up to its first end token."""
        end = length_until_end(completion.tokens, self.ends)
        return Completion(completion.tokens[:end], completion.logps[:end])

    def _not_empty(self, completion: Completion) -> Completion:
        # TRL looks at the last token of each completion
        return completion if completion.tokens else Completion(self.ends[:1], [None])

    def _tell_short(self, prompts: list[list[int]]) -> None:
        longest = max((len(prompt) for prompt in prompts), default=0)
        if longest + self.sampling.max_tokens > self.window and "window" not in self._told:
            self._told.add("window")
            logger.warning(
                "A prompt of %d tokens leaves %d for its completion in the vLLM engine's window of %d, fewer than "
                "`max_completion_length` %d.",
                longest,
                self.window - longest,
                self.window,
                self.sampling.max_tokens,
            )

    @abstractmethod
    def sync_weights(self) -> None:
        """Give the policy's present adapter to the engine."""

    @abstractmethod
    def sample(self, requests: list[Request]) -> Answers:
        """`n` samples for each request."""

    @abstractmethod
    def beam_search(self, requests: list[Request]) -> Answers:
        """At most `width` beams for each request, the best first."""
