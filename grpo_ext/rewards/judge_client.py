"""The wire of the judge reward: one request with retries, a cache on disk, a budget."""

import email.utils
import hashlib
import http.client
import json
import logging
import os
import random
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grpo_ext.trust import open_url

logger = logging.getLogger(__name__)

MAX_REPLY_BYTES = 2**20
RETRIED_STATUS = frozenset({408, 409, 425, 429})  # and any from 500 on


class JudgeError(RuntimeError):
    """The judge gave no usable reply."""


class BudgetExhaustedError(RuntimeError):
    """The judge's budget of requests or tokens is used up."""


class _Retryable(JudgeError):
    """A failure that may pass, with the seconds that the server asked to wait."""

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


@dataclass
class Budget:
    """What may still be spent by this process; `None` is without limit. Retries count as requests."""

    requests: int | None = None
    tokens: int | None = None
    requests_spent: int = 0
    tokens_spent: int = 0
    _lock: Any = field(default_factory=threading.Lock, repr=False)

    def take_request(self) -> None:
        """Count one request.

        Raises:
            BudgetExhaustedError: There is none left, or the tokens are used up.
        """
        with self._lock:
            if self.requests is not None and self.requests_spent >= self.requests:
                raise BudgetExhaustedError(
                    f"max_requests={self.requests} requests to the judge are used up; raise it."
                )
            if self.tokens is not None and self.tokens_spent >= self.tokens:
                raise BudgetExhaustedError(
                    f"max_tokens_total={self.tokens} tokens of the judge are used up ({self.tokens_spent}); raise it."
                )
            self.requests_spent += 1

    def add_tokens(self, count: int) -> None:
        """Count what a reply says it used."""
        with self._lock:
            self.tokens_spent += count

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())


class Cache:
    """Replies on disk, one file for each request, named by its content.

    A file appears whole or not at all (written beside and renamed), so any number of processes may share a folder.

    Args:
        folder: where the files lie; made when the first one is written.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    @staticmethod
    def key(*parts: Any) -> str:
        """Return the name for what determines a reply."""
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def get(self, key: str) -> str | None:
        """Return a reply, or `None` when there is none or its file is damaged."""
        try:
            entry = json.loads((self.folder / key[:2] / f"{key}.json").read_bytes())
        except (OSError, ValueError):
            return None
        return entry.get("reply") if isinstance(entry, dict) and isinstance(entry.get("reply"), str) else None

    def put(self, key: str, reply: str) -> None:
        """Keep a reply."""
        folder = self.folder / key[:2]
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=folder, suffix=".part")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump({"reply": reply}, file)
            os.replace(name, folder / f"{key}.json")
        finally:
            Path(name).unlink(missing_ok=True)


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible endpoint for chat completions.

    Args:
        base_url: Address up to and including the version, such as "http://localhost:8000/v1".
        model: Name of the model there.
        api_key_variable: Environment variable with the key, read for each request and kept nowhere; when it is not
            set, no key is sent.
        timeout: Seconds that one request may take from start to end.
        retries: How often a request is sent again.
        backoff: Seconds before the first of these; each later one waits twice as long, with a random part.
        max_wait: Most seconds before any of them, also when the server asks for more.
        temperature: Sent along; 0 for the same verdict each time.
        max_tokens: Longest reply.
    """

    base_url: str
    model: str
    api_key_variable: str = "OPENAI_API_KEY"
    timeout: float = 60.0
    retries: int = 4
    backoff: float = 1.0
    max_wait: float = 60.0
    temperature: float = 0.0
    max_tokens: int = 512

    def __post_init__(self) -> None:
        parts = urllib.parse.urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
            raise ValueError("base_url must be an http or https address with a host and without a user or password.")
        if self.retries < 0 or self.timeout <= 0:
            raise ValueError(f"timeout={self.timeout} must be above 0 and retries={self.retries} not below.")

    def body(self, text: str) -> dict[str, Any]:
        """Return the request for one message."""
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": text}],
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
        }

    def ask(self, text: str, budget: Budget) -> str:
        """Send one message and return the reply, trying again where that may help.

        Raises:
            JudgeError: No usable reply after all tries, or a refusal that trying again does not change.
            BudgetExhaustedError: The budget ended before a reply came.
        """
        for attempt in range(self.retries + 1):
            budget.take_request()
            try:
                return self._once(text, budget)
            except _Retryable as error:
                if attempt == self.retries:
                    raise JudgeError(f"{error} ({attempt + 1} tries).") from None
                wait = self.backoff * 2**attempt * (0.5 + random.random() / 2) if error.wait is None else error.wait
                logger.warning("judge: %s; trying again in %.1f s", error, min(wait, self.max_wait))
                time.sleep(min(wait, self.max_wait))
        raise AssertionError("the last attempt returns or raises")

    def _once(self, text: str, budget: Budget) -> str:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self.api_key_variable):
            headers["Authorization"] = f"Bearer {key}"
        url = self.base_url.rstrip("/") + "/chat/completions"
        request = urllib.request.Request(url, json.dumps(self.body(text)).encode(), headers, method="POST")
        end = time.monotonic() + self.timeout
        try:
            with open_url(request, self.timeout) as response:
                raw = self._read(response, end)
        except urllib.error.HTTPError as error:
            with error:
                wait = _retry_after(error.headers.get("Retry-After"))
            # Neither headers nor body are quoted: a server may repeat the key in them.
            message = f"{self.base_url} answered with status {error.code}"
            passing = error.code >= 500 or error.code in RETRIED_STATUS
            raise (_Retryable(message, wait) if passing else JudgeError(f"{message}.")) from None
        except TimeoutError:
            raise _Retryable(f"{self.base_url} gave no reply within timeout={self.timeout} s") from None
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            raise _Retryable(f"{self.base_url} could not be reached ({type(reason).__name__})") from None
        return self._reply(raw, budget)

    def _read(self, response: Any, end: float) -> bytes:
        """Read a body, within the time of the whole request however slowly it drips."""
        raw = b""
        while chunk := response.read1(65536):
            raw += chunk
            if len(raw) > MAX_REPLY_BYTES:
                raise _Retryable(f"{self.base_url} sent more than {MAX_REPLY_BYTES} bytes")
            if time.monotonic() > end:
                raise TimeoutError
        return raw

    def _reply(self, raw: bytes, budget: Budget) -> str:
        try:
            answer = json.loads(raw)
            reply = answer["choices"][0]["message"]["content"]
            used = (answer.get("usage") or {}).get("total_tokens")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise _Retryable(f"{self.base_url} sent something else than a chat completion") from None
        if not isinstance(reply, str):
            raise _Retryable(f"{self.base_url} sent a chat completion without text")
        # A server that does not count is charged by the usual four characters a token, the request included.
        budget.add_tokens(used if isinstance(used, int) and used >= 0 else (len(raw) + len(reply)) // 4)
        return reply


def _retry_after(value: str | None) -> float | None:
    """Read the header Retry-After: seconds or a date."""
    if value is None:
        return None
    if value.strip().isdigit() and len(value) < 10:
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None
