"""What went wrong between here and the hub: whether it passes, and how to say it in a sentence."""

import json
import random
import time
from collections.abc import Callable
from typing import TypeVar

from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

Result = TypeVar("Result")

# httpx's, httpx2's or requests' base of everything that goes wrong with a request, whichever this hub client uses
TRANSPORT: type[BaseException] = HfHubHTTPError.__bases__[0]
# A pool of uploads wraps its errors in RuntimeError; an answer that should be JSON and is a proxy's page is the last
FAILURES = (TRANSPORT, OSError, RuntimeError, json.JSONDecodeError)
PASSING = frozenset({408, 425, 429})
ATTEMPTS = 5
FIRST_WAIT = 1.0
LONGEST_WAIT = 60.0

SENTENCES: dict[int, str] = {
    400: "The hub did not take the files for {repo_id!r} (400{said})",
    401: "The hub does not accept the token (401); log in with `hf auth login`, or set HF_TOKEN",
    403: "The token may not write to {repo_id!r} (403); make one with write permission, or name a repository of yours",
    404: "The hub has no repository {repo_id!r}, or no such branch of it (404{said}); check `repo_id` and `revision`",
    409: "Something else is changing {repo_id!r} on the hub (409{said}); try again when it is done",
    413: "The hub finds the files for {repo_id!r} too large (413{said})",
}


def response_of(error: BaseException) -> HfHubHTTPError | None:
    """The hub's own error in a chain of causes.

    Args:
        error: what was raised.

    Returns:
        The first that carries an answer of the hub, or None.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, HfHubHTTPError):
            return cause
        cause = cause.__cause__ or cause.__context__
    return None


def passes(error: BaseException) -> bool:
    """Whether a second try may do better: a busy or broken server, a broken or slow connection.

    Args:
        error: what was raised.

    Returns:
        False where the hub refused, and where there was nothing to reach.
    """
    if isinstance(error, OfflineModeIsEnabled | LocalTokenNotFoundError):
        return False
    answered = response_of(error)
    if answered is not None:
        status = answered.response.status_code
        return status in PASSING or status >= 500
    return isinstance(error, (TRANSPORT, ConnectionError, TimeoutError, RuntimeError, json.JSONDecodeError))


def sentence(error: BaseException, repo_id: str) -> str:
    """What happened, without a full stop.

    Args:
        error: what was raised.
        repo_id: where the files were going.

    Returns:
        One sentence without addresses or identifiers.
    """
    if isinstance(error, OfflineModeIsEnabled):
        return "The hub cannot be asked because HF_HUB_OFFLINE is set; unset it"
    answered = response_of(error)
    if answered is None:
        return f"The hub cannot be reached ({_short(error)})"
    status = answered.response.status_code
    said = (answered.server_message or "").strip().partition("\n")[0]
    form = SENTENCES.get(status, "The hub answered {status}{said}")
    return form.format(repo_id=repo_id, status=status, said=f": {said}" if said else "")


def _short(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, json.JSONDecodeError):
        return "its answer is not what the hub says"
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def patiently(
    call: Callable[[], Result], repo_id: str, attempts: int = ATTEMPTS, first_wait: float = FIRST_WAIT
) -> Result:
    """Call until it works, waiting twice as long after each failure that may pass, with up to a quarter at random.

    A server that says how long to wait (`Retry-After`) is obeyed, up to a minute.

    Args:
        call: does it all again each time.
        repo_id: for the messages.
        attempts: calls at most.
        first_wait: seconds before the second.

    Returns:
        What the call returns.

    Raises:
        OSError: the hub refused, or it failed `attempts` times; in one sentence.
    """
    for attempt in range(1, attempts + 1):
        try:
            return call()
        except FAILURES as error:
            said = sentence(error, repo_id)
            if not passes(error):
                raise OSError(said) from error
            if attempt == attempts:
                raise OSError(f"{said}, {attempts} times") from error
            wait = min(first_wait * 2 ** (attempt - 1) * random.uniform(1.0, 1.25), LONGEST_WAIT)
            wait = max(wait, _asked_to_wait(error))
            print(f"{said}; trying again in {wait:.0f} s (attempt {attempt + 1} of {attempts})", flush=True)
            time.sleep(wait)
    raise ValueError(f"`attempts` is {attempts}; it must be at least 1.")


def _asked_to_wait(error: BaseException) -> float:
    answered = response_of(error)
    value = "" if answered is None else answered.response.headers.get("Retry-After", "")
    return min(float(value), LONGEST_WAIT) if value.isdigit() else 0.0
