"""Answers from vLLM: an engine in this process, or stock servers. Each sample is a request with a seed of its own."""

import gc
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from grpo_ext.evaluation.questions import GREEDY, Answer, Question
from grpo_ext.evaluation.subjects import Subject
from grpo_ext.rewards.rows import prompt_text
from grpo_ext.rollouts.vllm.adapters import engine_rank
from grpo_ext.rollouts.vllm.base import same_model
from grpo_ext.rollouts.vllm.engine import EngineOptions, start_engine
from grpo_ext.rollouts.vllm.fleet import Fleet
from grpo_ext.rollouts.vllm.requests import Sampling, room
from grpo_ext.rollouts.vllm.server import Refused, Server, ServerDown, completion_of


class _Asking:
    """What both make of a question.

    Args:
        tokenizer: of the model.
        sampling: how tokens are drawn.
        seed: of the samples.
    """

    window: int

    def __init__(self, tokenizer: Any, sampling: Sampling, seed: int) -> None:
        self.tokenizer, self.sampling, self.seed = tokenizer, sampling, seed

    def prompt(self, question: Question) -> list[int]:
        """Token ids of a question."""
        return self.tokenizer(prompt_text(question.prompt, self.tokenizer), add_special_tokens=False)["input_ids"]

    def fields(self, question: Question, prompt: Sequence[int]) -> dict[str, Any]:
        """Fields of a question's request."""
        most = room(prompt, question.problem, self.window, self.sampling.max_tokens)
        fields = self.sampling.fields(1, most) | {"stop_token_ids": [self.tokenizer.eos_token_id]}
        del fields["logprobs"]
        if question.sample is GREEDY:
            return fields | {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}
        return fields | {"seed": question.digest(self.seed) & 0x7FFF_FFFF}

    def answer(self, tokens: Sequence[int], ended: bool) -> Answer:
        """What vLLM gives back, as an answer."""
        return Answer(self.tokenizer.decode(list(tokens), skip_special_tokens=True), len(tokens), ended)


class EngineModel(_Asking):
    """A model in an engine of this process.

    Args:
        llm: engine that holds the base.
        subject: the model.
        number: of the adapter, another one for each adapter of an engine.
        tokenizer: of the model.
        sampling: how tokens are drawn.
        seed: of the samples.
    """

    def __init__(
        self, llm: Any, subject: Subject, number: int, tokenizer: Any, sampling: Sampling, seed: int = 0
    ) -> None:
        super().__init__(tokenizer, sampling, seed)
        self.llm, self.lora = llm, None
        self.window = llm.llm_engine.model_config.max_model_len
        if subject.adapter is not None:
            from vllm.lora.request import LoRARequest

            self.lora = LoRARequest(subject.label, number, str(Path(subject.adapter).resolve()))

    def complete(self, asked: Sequence[Question]) -> list[Answer]:
        """Answer a batch in one call of the engine.

        Args:
            asked: questions.

        Returns:
            An answer for each.
        """
        from vllm import SamplingParams

        # What earlier batches have left there would change rounding, and after a restart it is not there
        self.llm.reset_prefix_cache()
        prompts = [self.prompt(question) for question in asked]
        params = [
            SamplingParams(**self.fields(question, prompt), detokenize=False)
            for question, prompt in zip(asked, prompts, strict=True)
        ]
        outputs = self.llm.generate(
            [{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False, lora_request=self.lora
        )
        found = [output.outputs[0] for output in outputs]
        return [self.answer(row.token_ids, row.finish_reason == "stop") for row in found]


class Engines:
    """One engine at a time, kept while the next model has the same base.

    Args:
        dtype: type of weights and computation.
        memory: share of the device's memory.
        window: longest prompt with completion, or None for the model's own.
        rank: largest rank of all adapters, 0 without any.
        trust_remote_code: whether code that comes with the model may run.

    Raises:
        ValueError: vLLM is not installed, or the rank is above its limit.
    """

    def __init__(
        self, dtype: Any, memory: float, window: int | None, rank: int, trust_remote_code: bool = False
    ) -> None:
        if importlib.util.find_spec("vllm") is None:
            raise ValueError(
                "`engine` 'vllm' needs vLLM in this environment: `pip install 'grpo-ext[vllm]'`, or name servers "
                "elsewhere with --vllm_server_urls."
            )
        self.dtype, self.memory, self.window, self.trust = dtype, memory, window, trust_remote_code
        self.rank = engine_rank(rank) if rank else None
        self.base, self.llm, self.adapters = "", None, 0

    def model(self, subject: Subject, tokenizer: Any, sampling: Sampling, seed: int) -> EngineModel:
        """A model in the engine of its base.

        Args:
            subject: the model.
            tokenizer: its tokenizer.
            sampling: how tokens are drawn.
            seed: of the samples.
        """
        if subject.base != self.base:
            self.close()
            options = EngineOptions(
                subject.base,
                self.dtype,
                gpu_memory_utilization=self.memory,
                max_model_length=self.window,
                trust_remote_code=self.trust,
            )
            self.base, self.llm = subject.base, start_engine(options, self.rank)
        self.adapters += subject.adapter is not None
        return EngineModel(self.llm, subject, self.adapters, tokenizer, sampling, seed)

    def close(self) -> None:
        """End the engine and give its memory back."""
        if self.llm is not None:
            self.llm.llm_engine.engine_core.shutdown()
        self.base, self.llm = "", None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


class ServedModel(_Asking):
    """A model on servers that hold its base, and load its adapter at run time.

    Args:
        urls: addresses.
        subject: the model; servers read the folder of its adapter.
        tokenizer: of the model.
        sampling: how tokens are drawn.
        seed: of the samples.
        patience: seconds without any server after which the evaluation stops.

    Raises:
        ValueError: a server speaks another model, or does not load the adapter.
        ConnectionError: a server is not there.
    """

    def __init__(
        self,
        urls: Sequence[str],
        subject: Subject,
        tokenizer: Any,
        sampling: Sampling,
        seed: int = 0,
        patience: float = 240.0,
    ) -> None:
        super().__init__(tokenizer, sampling, seed)
        self.subject, self.names = subject, dict[str, str]()
        # Of its weights, too: a server keeps what it has loaded under a name
        self.adapter_name = f"{subject.label}-{subject.fingerprint()}"
        self.fleet = Fleet([Server(url) for url in urls], patience)
        self._windows: dict[str, int] = {}
        try:
            self.fleet.each(self._prepare, all_of_them=True)
        except Refused as error:
            raise ValueError(str(error)) from None
        self.window = min(self._windows.values())

    def _prepare(self, server: Server) -> None:
        rows = [row for row in server.models() if not row.get("parent")]
        own = next((row for row in rows if same_model(str(row.get("root") or row["id"]), self.subject.base)), None)
        if own is None:
            served = ", ".join(str(row.get("root") or row["id"]) for row in rows) or "no model"
            raise Refused(
                f"The vLLM server {server.url} speaks {served}, and {self.subject.name} is {self.subject.base}; "
                "evaluate what is served, or start a server with that model."
            )
        self._windows[server.url] = int(own.get("max_model_len") or 2**31)
        self.names[server.url] = str(own["id"])
        if self.subject.adapter is not None:
            try:
                server.load(self.adapter_name, str(Path(self.subject.adapter).resolve()))
            except Refused as error:
                raise Refused(
                    f"The vLLM server {server.url} does not load the adapter ({error}); start it with --enable-lora "
                    f"--max-lora-rank {engine_rank(self.subject.rank)} and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1."
                ) from None
            self.names[server.url] = self.adapter_name

    def complete(self, asked: Sequence[Question]) -> list[Answer]:
        """Answer a batch, spread over the servers that are up.

        Args:
            asked: questions.

        Returns:
            An answer for each.

        Raises:
            ValueError: a server refuses a request.
            ConnectionError: no server is up.
        """
        try:
            return self.fleet.run(list(asked), self._ask, self._prepare)
        except Refused as error:
            raise ValueError(str(error)) from None

    def _ask(self, server: Server, question: Question) -> Answer:
        prompt = self.prompt(question)
        body = {"model": self.names[server.url], "prompt": prompt, "return_token_ids": True}
        (choice, *_) = server.complete(body | {"add_special_tokens": False} | self.fields(question, prompt)) or [{}]
        completion = completion_of(choice)
        if completion is None:
            raise ServerDown(f"{server.url} answers without token ids: is it a vLLM that knows `return_token_ids`?")
        return self.answer(completion.tokens, choice.get("finish_reason") == "stop")
