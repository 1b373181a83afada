"""One stock vLLM server over HTTP: its models, its adapters, its completions."""

import http.client
import json
import os
import threading
import time
import urllib.error
import urllib.request
from typing import Any

from grpo_ext.rollouts.vllm.requests import Completion, number
from grpo_ext.trust import open_url

# Seconds for a question that needs no computation, and at least for the loading of an adapter
SHORT = 10.0
LOADING = 60.0


class ServerDown(Exception):
    """The server does not answer, or not as a working one: its prompts go elsewhere, and it is tried again later."""


class Refused(Exception):
    """The server works and says no: asking again, or another one, gives the same answer."""


class Server:
    """A server by its address, and whether it is up.

    Args:
        url: for example "http://node1:8000"; a trailing "/v1" is dropped.
        timeout: seconds that a completion or the loading of an adapter may take.
        first_wait: seconds before a dead server is tried again; doubled with each failure.
        longest_wait: most seconds between two tries.
    """

    def __init__(self, url: str, timeout: float = 600.0, first_wait: float = 1.0, longest_wait: float = 60.0) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self.timeout, self.first_wait, self.longest_wait = timeout, first_wait, longest_wait
        self.alive, self.reason, self.next_try = True, "", 0.0
        # Counts comebacks, so that an old request that fails late does not take the revived server out
        self.life = 0
        self._failures = 0
        self._lock = threading.Lock()

    def take_out(self, reason: str, life: int) -> bool:
        """Note a failure, unless it belongs to an earlier life of the server, and return whether it was up."""
        with self._lock:
            if life != self.life or (not self.alive and time.monotonic() < self.next_try):
                return False
            was_alive = self.alive
            self._failures += 1
            self.alive, self.reason = False, reason
            wait = min(self.longest_wait, self.first_wait * 2 ** (self._failures - 1))
            self.next_try = time.monotonic() + wait
            return was_alive

    def take_back(self) -> None:
        """Note that the server works again."""
        with self._lock:
            self.alive, self.reason, self._failures = True, "", 0
            self.life += 1

    def models(self) -> list[dict[str, Any]]:
        """Base model and adapters: `id`, `root`, `parent` and `max_model_len` of each.

        Raises:
            ServerDown: no answer, or one that is no list of models.
        """
        found = self._json("GET", "/v1/models", None, SHORT).get("data")
        if not isinstance(found, list) or not all(isinstance(row, dict) and "id" in row for row in found):
            raise ServerDown(f"{self.url} answers /v1/models with no list of models")
        return found

    def version(self) -> str:
        """vLLM's version there."""
        return str(self._json("GET", "/version", None, SHORT).get("version"))

    def load(self, name: str, path: str) -> None:
        """Load an adapter from a folder that the server reads, unless it has it already.

        Args:
            name: under which requests ask for it.
            path: of the folder, as the server sees it.

        Raises:
            ServerDown: no answer, or not in time.
            Refused: the server cannot update adapters, or not load this one.
        """
        patience = max(self.timeout, LOADING)
        try:
            self._ask("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": path}, patience)
        except ServerDown as error:
            # vLLM refuses with an internal error, after which it is as healthy as before
            self._ask("GET", "/health", None, SHORT)
            if _is_late(error.__cause__):
                said = f"{self.url} did not load the adapter within {patience:g} s"
                raise ServerDown(f"{said} (`vllm_request_timeout`, at least {LOADING:g})") from error
            raise Refused(str(error)) from None
        except Refused as error:
            if "already been loaded" not in str(error):
                raise

    def unload(self, name: str) -> None:
        """Forget an adapter; that the server has not got it is no failure."""
        try:
            self._ask("POST", "/v1/unload_lora_adapter", {"lora_name": name}, SHORT)
        except (ServerDown, Refused):
            return

    def complete(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        """The choices that /v1/completions answers with, in their order.

        Args:
            body: of the request.

        Returns:
            A dict a choice.

        Raises:
            ServerDown: no answer, or one without choices.
            Refused: the request cannot be served.
        """
        choices = self._json("POST", "/v1/completions", body, self.timeout).get("choices")
        if not isinstance(choices, list) or not all(isinstance(row, dict) for row in choices):
            raise ServerDown(f"{self.url} answers /v1/completions without choices")
        return sorted(choices, key=lambda row: row.get("index", 0))

    def _json(self, method: str, path: str, body: dict[str, Any] | None, timeout: float) -> dict[str, Any]:
        text = self._ask(method, path, body, timeout)
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise ServerDown(f"{self.url} answers {path} with something that is not vLLM's: {text[:80]!r}")
        return found

    def _ask(self, method: str, path: str, body: dict[str, Any] | None, timeout: float) -> str:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("VLLM_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            with open_url(request, timeout) as answer:
                return answer.read().decode("utf-8", "replace")
        except urllib.error.HTTPError as error:
            raise self._error(path, error) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error or type(error).__name__
            raise ServerDown(f"{self.url} does not answer: {reason}") from error

    def _error(self, path: str, error: urllib.error.HTTPError) -> ServerDown | Refused:
        with error:
            said = _message(error.read().decode("utf-8", "replace"))
        if path == "/v1/completions" and error.code == 404:
            return ServerDown(f"{self.url} has lost the adapter: {said}")
        kind = ServerDown if error.code >= 500 or error.code in (408, 429) else Refused
        return kind(f"{self.url} answers {path} with {error.code}: {said}")


def _is_late(error: BaseException | None) -> bool:
    return isinstance(error, TimeoutError) or isinstance(getattr(error, "reason", None), TimeoutError)


def _message(text: str) -> str:
    """What vLLM says in the body of an error, or the beginning of the body."""
    try:
        body = json.loads(text)
    except ValueError:
        return text[:200]
    if isinstance(body, dict):
        inner = body.get("error", body)
        if isinstance(inner, dict):
            return str(inner.get("message") or inner.get("detail") or inner)[:400]
    return text[:200]


def completion_of(choice: dict[str, Any]) -> Completion | None:
    """A choice of /v1/completions as a completion.

    Args:
        choice: with `token_ids`, and with `logprobs` where they were asked for.

    Returns:
        The completion, or None where it is no such thing.
    """
    tokens = choice.get("token_ids")
    if not isinstance(tokens, list) or not all(isinstance(token, int) for token in tokens):
        return None
    logprobs = choice.get("logprobs")
    if logprobs is None:
        return Completion(tokens, [None] * len(tokens))
    values = logprobs.get("token_logprobs") if isinstance(logprobs, dict) else None
    if not isinstance(values, list) or len(values) != len(tokens):
        return None
    return Completion(tokens, [number(value) for value in values])
