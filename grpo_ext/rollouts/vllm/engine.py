"""vLLM in this process on the frozen base; each sync swaps the adapter, and the base weights never move."""

import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from grpo_ext.randomness import random_states_kept
from grpo_ext.rollouts.vllm.adapters import AdapterFolder, engine_rank
from grpo_ext.rollouts.vllm.requests import Answers, Completion, GroupSearch, Request, Sampling, number
from grpo_ext.rollouts.vllm.rollouts import AdapterRollouts

# vLLM's own default for `max_logprobs`
USUAL_LOGPROBS = 20


class EngineFailed(RuntimeError):
    """The engine of this process broke off in a request. It is not started again: its memory is this process's."""


@dataclass(frozen=True)
class EngineOptions:
    """How the engine is started; names are TRL's without `vllm_`.

    Attributes:
        base: folder or hub name of the unquantised base.
        dtype: type of weights and computation.
        gpu_memory_utilization: share of the device's memory.
        max_model_length: window; None is the model's own.
        max_num_seqs: completions computed at a time.
        model_impl: vLLM's or transformers' implementation.
        trust_remote_code: whether code that comes with the model may run.
        seed: of the engine's sampling; must differ between processes.
        several_processes: whether other processes train beside this one.
    """

    base: str
    dtype: torch.dtype = torch.bfloat16
    gpu_memory_utilization: float = 0.3
    max_model_length: int | None = None
    max_num_seqs: int | None = None
    model_impl: str = "auto"
    trust_remote_code: bool = False
    seed: int = 0
    several_processes: bool = False


class EngineRollouts(AdapterRollouts):
    """An `LLM` with `enable_lora` whose requests carry the adapter of the last sync.

    Args:
        model: policy with the adapter, not wrapped.
        sampling: how tokens are drawn.
        search: which part of a training group is beams.
        ends: tokens that end a completion, the tokenizer's own first.
        options: how the engine is started.
        folder: where adapters are written; None makes one in memory.
        engine: a running `LLM` with `enable_lora` on the same base, in place of one that is started.

    Raises:
        ImportError: vLLM is not installed.
        ValueError: the adapter's rank is above vLLM's limit, or the given engine tells too few log-probabilities.
    """

    def __init__(
        self,
        model: Any,
        sampling: Sampling,
        search: GroupSearch,
        ends: Sequence[int],
        options: EngineOptions,
        folder: AdapterFolder | None = None,
        engine: Any = None,
    ) -> None:
        super().__init__(model, sampling, search, ends)
        rank = engine_rank(model.peft_config[model.active_adapter].r)
        self.folder = folder or AdapterFolder(dtype=options.dtype)
        logprobs = max(USUAL_LOGPROBS, 2 * search.width)
        self.llm = start_engine(options, rank, logprobs) if engine is None else engine
        config = self.llm.llm_engine.model_config
        # -1 is no limit
        if 0 <= config.max_logprobs < 2 * search.width:
            raise ValueError(
                f"The policy's vLLM engine tells {config.max_logprobs} log-probabilities a token, and {search.width} "
                f"beams need {2 * search.width}; start it with max_logprobs={2 * search.width}."
            )
        self.window = config.max_model_len
        self._lora: Any = None

    def sync_weights(self) -> None:
        """Write the adapter and carry it, under a new id, in every request from now on."""
        from vllm.lora.request import LoRARequest

        before = self.adapter
        self.adapter = self.folder.write(self.model)
        self._lora = LoRARequest(self.adapter.name, self.adapter.number, self.adapter.path)
        # Loaded now, so that what vLLM refuses stops the run here
        self.llm.llm_engine.add_lora(self._lora)
        if before is not None:
            self.llm.llm_engine.remove_lora(before.number)
        self.llm.reset_prefix_cache()

    def sample(self, requests: list[Request]) -> Answers:
        """`n` samples for each request, in one call of the engine."""
        from vllm import SamplingParams

        params = [SamplingParams(**self._fields(request)) for request in requests]
        prompts = [{"prompt_token_ids": list(request.prompt)} for request in requests]
        with _told_apart():
            outputs = self.llm.generate(prompts, params, use_tqdm=False, lora_request=self._adapter())
        return [
            [
                Completion(list(row.token_ids), _sampled(row.token_ids, row.logprobs))
                for row in sorted(output.outputs, key=lambda row: row.index)
            ]
            for output in outputs
        ]

    def beam_search(self, requests: list[Request]) -> Answers:
        """At most `width` beams for each request, the best first, under the distribution at the set temperature."""
        from vllm.sampling_params import BeamSearchParams

        answers: dict[int, list[Completion]] = {}
        order = sorted(range(len(requests)), key=lambda i: _kind(requests[i]))
        for _, same in itertools.groupby(order, key=lambda i: _kind(requests[i])):
            places = list(same)
            first = requests[places[0]]
            params = BeamSearchParams(
                beam_width=first.width,
                max_tokens=first.max_tokens,
                temperature=self.sampling.temperature,
                length_penalty=first.length_penalty,
                include_stop_str_in_output=True,
            )
            prompts = [{"prompt_token_ids": list(requests[i].prompt)} for i in places]
            with _told_apart():
                outputs = self.llm.beam_search(prompts, params, lora_request=self._adapter())
            for place, output in zip(places, outputs, strict=True):
                start = len(requests[place].prompt)
                answers[place] = [
                    Completion(list(beam.tokens[start:]), _sampled(beam.tokens[start:], beam.logprobs))
                    for beam in output.sequences
                ]
        return [answers[place] for place in range(len(requests))]

    def _adapter(self) -> Any:
        if self._lora is None:
            raise RuntimeError("The engine has no adapter yet; call `sync_weights` before `generate`.")
        return self._lora

    def _fields(self, request: Request) -> dict[str, Any]:
        fields = {"stop_token_ids": self.ends, **self.sampling.fields(request.n, request.max_tokens)}
        # Text is needed where a stop string is looked for
        fields.setdefault("detokenize", "stop" in fields or "bad_words" in fields)
        if isinstance(fields.get("structured_outputs"), dict):
            from vllm.sampling_params import StructuredOutputsParams

            fields["structured_outputs"] = StructuredOutputsParams(**fields["structured_outputs"])
        return fields


def start_engine(options: EngineOptions, max_lora_rank: int | None, max_logprobs: int = USUAL_LOGPROBS) -> Any:
    """An engine that computes in this process.

    Args:
        options: how it is started.
        max_lora_rank: one of `ENGINE_RANKS`; None is an engine without adapters.
        max_logprobs: most alternatives of a token that a request may ask for; a search asks for twice its width.

    Returns:
        A `vllm.LLM`.

    Raises:
        ImportError: vLLM is not installed.
    """
    try:
        from vllm import LLM
    except ImportError as error:
        raise ImportError(
            "`use_vllm` needs vLLM in this environment, or `vllm_server_urls` of servers elsewhere; "
            "`pip install 'grpo-ext[vllm]'` installs it."
        ) from error
    if options.several_processes:
        # One engine for each process on its own device, within the process group that exists
        extra: dict[str, Any] = {"distributed_executor_backend": "external_launcher"}
    else:
        extra = {}
    if max_lora_rank is not None:
        extra |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": max_lora_rank}
    # An engine in this process seeds the generators, which the trainer has seeded before
    with _within_this_process(), random_states_kept():
        return LLM(
            model=options.base,
            dtype=str(options.dtype).removeprefix("torch."),
            gpu_memory_utilization=options.gpu_memory_utilization,
            max_model_len=options.max_model_length,
            max_num_seqs=options.max_num_seqs,
            model_impl=options.model_impl,
            trust_remote_code=options.trust_remote_code,
            seed=options.seed,
            # Of the distribution that is sampled from, which the importance ratio needs
            logprobs_mode="processed_logprobs",
            max_logprobs=max_logprobs,
            # A large default would be measured as memory that is needed
            max_num_batched_tokens=4096,
            **extra,
        )


@contextmanager
def _within_this_process() -> Iterator[None]:
    """vLLM reads off the environment whether an engine computes in a process of its own."""
    name = "VLLM_ENABLE_V1_MULTIPROCESSING"
    before = os.environ.get(name)
    os.environ[name] = "0"
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


@contextmanager
def _told_apart() -> Iterator[None]:
    """An engine in this process fails with whatever error its computation met."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise EngineFailed(f"the engine failed: {error}") from error


def _kind(request: Request) -> tuple[int, int, float]:
    return request.width, request.max_tokens, request.length_penalty


def _sampled(tokens: Sequence[int], logprobs: Any) -> list[float | None]:
    """Log-probability of each token among the alternatives that came with it."""
    if logprobs is None:
        return [None] * len(tokens)
    return [number(found[token].logprob) for token, found in zip(tokens, logprobs, strict=True)]
