"""Stock `vllm serve --enable-lora` servers: adapters are loaded at run time, prompts spread over those that are up."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError

from grpo_ext.rollouts.vllm.adapters import Adapter, AdapterFolder, engine_rank
from grpo_ext.rollouts.vllm.base import same_model
from grpo_ext.rollouts.vllm.fleet import Fleet
from grpo_ext.rollouts.vllm.requests import Answers, Completion, GroupSearch, Request, Sampling
from grpo_ext.rollouts.vllm.rollouts import AdapterRollouts
from grpo_ext.rollouts.vllm.server import Refused, Server, ServerDown, completion_of

logger = logging.getLogger("grpo_ext")

START = (
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve MODEL --enable-lora --max-lora-rank {rank} "
    "--logprobs-mode processed_logprobs"
)
# Fields of `generation_kwargs` that a server takes; another one it would pass over in silence.
SERVED_FIELDS = frozenset(
    "allowed_token_ids bad_words frequency_penalty ignore_eos include_stop_str_in_output logit_bias logprobs min_p "
    "min_tokens presence_penalty repetition_penalty seed skip_special_tokens spaces_between_special_tokens stop "
    "stop_token_ids structured_outputs temperature top_k top_p vllm_xargs".split()
)
PROBE = (1, 2, 3)


@dataclass(frozen=True)
class ServerOptions:
    """Where the servers are and what is expected of them.

    Attributes:
        urls: addresses.
        base: folder or hub name of the base that they serve.
        timeout: seconds that a completion or the loading of an adapter may take before its server counts as dead.
        patience: seconds without any server after which the run stops.
        first_wait: seconds before a dead server is tried again, doubled with each failure.
        needs_logprobs: whether log-probabilities must be those of the distribution that is sampled from.
    """

    urls: Sequence[str]
    base: str
    timeout: float = 600.0
    patience: float = 240.0
    first_wait: float = 1.0
    needs_logprobs: bool = True


class ServerRollouts(AdapterRollouts):
    """Requests to servers that have loaded the adapter of the last sync.

    Args:
        model: policy with the adapter, not wrapped.
        sampling: how tokens are drawn.
        search: which part of a training group is beams.
        ends: tokens that end a completion, the tokenizer's own first.
        options: where the servers are.
        folder: where adapters are written, readable by all servers; None makes one in memory.
        accelerator: of the run; its main process writes the adapter and has it loaded.

    Raises:
        ValueError: a server speaks another model, does not load adapters, or refuses this one.
        ConnectionError: a server is not there.
    """

    def __init__(
        self,
        model: Any,
        sampling: Sampling,
        search: GroupSearch,
        ends: Sequence[int],
        options: ServerOptions,
        folder: AdapterFolder | None = None,
        accelerator: Accelerator | None = None,
    ) -> None:
        super().__init__(model, sampling, search, ends)
        unknown = sorted(set(sampling.extra) - SERVED_FIELDS)
        if unknown:
            raise ValueError(
                f"`generation_kwargs` has {', '.join(unknown)}, which no vLLM server takes; leave it out."
            )
        self.options = options
        self.accelerator = accelerator or Accelerator()
        self.folder = (folder or AdapterFolder()) if self.accelerator.is_main_process else None
        self.fleet = Fleet(
            [Server(url, options.timeout, options.first_wait) for url in options.urls], options.patience
        )
        self._windows: dict[str, int] = {}
        self._check()

    # What TRL's trainer reads off its own back ends

    @property
    def llm(self) -> Any:
        """The window where TRL looks for it in an engine."""
        return SimpleNamespace(llm_engine=SimpleNamespace(model_config=SimpleNamespace(max_model_len=self.window)))

    @property
    def vllm_client(self) -> Any:
        """The log-probabilities' mode where TRL asks its own client for it; another one was refused before."""
        return SimpleNamespace(get_server_info=lambda: {"model_config": {"logprobs_mode": "processed_logprobs"}})

    # Checks before the first step

    def _check(self) -> None:
        try:
            self.fleet.each(self._check_model, all_of_them=True)
            self.window = min(self._windows.values())
            self._check_versions()
            self.sync_weights(all_of_them=True)
            self.fleet.each(self._check_answers, all_of_them=True)
        except Refused as error:
            raise ValueError(str(error)) from None

    def _check_model(self, server: Server) -> None:
        bases = [row for row in server.models() if not row.get("parent")]
        served = [str(row.get("root") or row["id"]) for row in bases]
        if not any(same_model(name, self.options.base) for name in served):
            raise Refused(
                f"The vLLM server {server.url} speaks {', '.join(served) or 'no model'}, and the policy's base is "
                f"{self.options.base}; start it with that model, or name what it serves in `vllm_base_model` if they "
                "are the same."
            )
        self._windows[server.url] = min(int(row.get("max_model_len") or 2**31) for row in bases)

    def _check_versions(self) -> None:
        versions = {server.version() for server in self.fleet.servers}
        if len(versions) > 1:
            logger.warning(
                "The vLLM servers have different versions (%s), whose log-probabilities may differ; one version on "
                "all of them is safer.",
                ", ".join(sorted(versions)),
            )

    def _check_answers(self, server: Server) -> None:
        """One token, and one step of the search, before a whole batch is sent."""
        self._samples_at(server, Request(PROBE, 1, 1, 0))
        if width := self.search.width:
            try:
                self._beams_at(server, Request(PROBE, width, 1, 0, width))
            except Refused as error:
                raise Refused(
                    f"A search of {width} beams asks for {2 * width} alternatives of each token, and {error}; start "
                    f"that server with --max-logprobs {2 * width}, or set a smaller `num_beams`."
                ) from None
        if not self.options.needs_logprobs:
            return
        likely = [self._most_likely(server, temperature) for temperature in (1.0, 0.01)]
        # Near temperature 0 the most probable token gets all the probability, unless the temperature is left out
        if likely[0] < -1e-3 and abs(likely[0] - likely[1]) < 1e-5:
            raise Refused(
                f"The vLLM server {server.url} returns log-probabilities before temperature and top-p, which biases "
                "the importance sampling correction; start it with --logprobs-mode processed_logprobs, or set "
                "vllm_importance_sampling_correction=False."
            )

    def _most_likely(self, server: Server, temperature: float) -> float:
        body = {**self._body(Request(PROBE, 1, 1, 0)), "temperature": temperature, "top_p": 1.0, "top_k": 0}
        body |= {"min_p": 0.0, "logprobs": 1, "n": 1, "max_tokens": 1}
        (choice,) = server.complete(body)
        found = (choice.get("logprobs") or {}).get("top_logprobs") or [{}]
        return max(found[0].values(), default=0.0)

    # The adapter

    def sync_weights(self, all_of_them: bool = False) -> None:
        """Write the adapter on the main process and have it loaded by every server that is up.

        Args:
            all_of_them: whether a server that is down or refuses stops the run.
        """
        before = self.adapter
        outcome: list[Any] = [None, None]
        if self.folder is not None:
            outcome = self._written_and_loaded(all_of_them)
        # Nobody may ask for the adapter before it is loaded, nor wait for a main process that has failed
        broadcast_object_list(outcome, from_process=0)
        self.adapter, error = outcome
        if error is not None:
            raise error
        if self.folder is not None and before is not None:
            for server in self.fleet.servers:
                if server.alive:
                    server.unload(before.name)

    def _written_and_loaded(self, all_of_them: bool) -> list[Any]:
        assert self.folder is not None
        try:
            self.adapter = self.folder.write(self.model)
        except (OSError, SafetensorError) as error:
            return [None, OSError(f"the adapter could not be written in {self.folder.path}: {error}")]
        try:
            self.fleet.each(lambda server: self._load(server) if server.alive else self._revive(server), all_of_them)
        except Refused as error:
            return [None, ValueError(str(error))]
        except ConnectionError as error:
            return [None, error]
        return [self.adapter, None]

    def _load(self, server: Server) -> None:
        adapter: Adapter | None = self.adapter
        assert adapter is not None
        try:
            server.load(adapter.name, adapter.path)
        except Refused as error:
            raise Refused(self._advice(server, adapter, str(error))) from None

    def _advice(self, server: Server, adapter: Adapter, said: str) -> str:
        rank = self.model.peft_config[self.model.active_adapter].r
        start = START.format(rank=engine_rank(rank))
        if "max_lora_rank" in said:
            return (
                f"The adapter has rank {rank}, and {said}; start that server with --max-lora-rank "
                f"{engine_rank(rank)}, or train with a smaller `lora_r`."
            )
        if adapter.path in said:
            return (
                f"The vLLM server {server.url} cannot read the adapter in {adapter.path}; name a folder in "
                "`vllm_adapter_dir` that it shares with the trainer."
            )
        return f"The vLLM server {server.url} does not load adapters ({said}); start it as `{start}`."

    def _revive(self, server: Server) -> None:
        self._check_model(server)
        self._load(server)

    # Requests

    def sample(self, requests: list[Request]) -> Answers:
        """`n` samples for each request, spread over the servers that are up."""
        return self._run(requests, self._samples_at)

    def beam_search(self, requests: list[Request]) -> Answers:
        """At most `width` beams for each request, the best first, under the distribution at the set temperature."""
        return self._run(requests, self._beams_at)

    def _run(self, requests: list[Request], send: Any) -> Answers:
        try:
            return self.fleet.run(requests, send, self._revive)
        except Refused as error:
            raise ValueError(str(error)) from None

    def _body(self, request: Request) -> dict[str, Any]:
        assert self.adapter is not None
        return {
            "model": self.adapter.name,
            "prompt": list(request.prompt),
            "return_token_ids": True,
            "add_special_tokens": False,
            "stop_token_ids": self.ends,
            **self.sampling.fields(request.n, request.max_tokens),
        }

    def _samples_at(self, server: Server, request: Request) -> list[Completion]:
        return self._completions(server, request, self._body(request), request.n)

    def _beams_at(self, server: Server, request: Request) -> list[Completion]:
        body = {
            **{name: self._body(request)[name] for name in ("model", "prompt", "return_token_ids", "temperature")},
            "use_beam_search": True,
            "n": request.width,
            "max_tokens": request.max_tokens,
            "length_penalty": request.length_penalty,
            "include_stop_str_in_output": True,
        }
        return self._completions(server, request, body, None)

    def _completions(
        self, server: Server, request: Request, body: dict[str, Any], count: int | None
    ) -> list[Completion]:
        try:
            choices = server.complete(body)
        except Refused as error:
            raise Refused(
                f"The prompt of row {request.row} ({len(request.prompt)} tokens, {request.max_tokens} for the "
                f"completion) is refused by a vLLM server: {error}"
            ) from None
        found = [completion_of(choice) for choice in choices]
        if not found or (count is not None and len(found) != count) or None in found:
            raise ServerDown(
                f"{server.url} answers with {len(found)} completions for {count or 'some'}, or with some that have no "
                "token ids and log-probabilities: is it a vLLM that knows `return_token_ids`?"
            )
        return [completion for completion in found if completion is not None]
