"""Requests to servers that get a key: no redirects, and certificates are checked."""

import urllib.parse
import urllib.request
from typing import Any


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another host."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def open_url(request: urllib.request.Request, timeout: float) -> Any:
    """Send a request to the host that it names and to no other one.

    Args:
        request: with its headers.
        timeout: seconds without an answer.

    Returns:
        The response.

    Raises:
        urllib.error.HTTPError: the server refuses, or wants to send us elsewhere.
        OSError: it cannot be reached, or its certificate is not valid.
    """
    return urllib.request.build_opener(_NoRedirect).open(request, timeout=timeout)


def without_password(url: str, field: str) -> None:
    """Refuse an address with a user or a password in it, which would be in every log and summary.

    Args:
        url: the address.
        field: where it was given.

    Raises:
        ValueError: it has one; the message does not repeat it.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.username or parts.password:
        raise ValueError(
            f"`{field}` has an address with a user or a password in it, which logs would repeat; give the address "
            "alone, and the key in an environment variable."
        )
