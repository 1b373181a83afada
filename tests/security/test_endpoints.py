"""A key goes to the host that it is for: no redirects, checked certificates, no password in an address."""

import http.client
import ssl
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from grpo_ext import GRPOExtConfig
from grpo_ext.recipes.evaluate import checked, parser
from grpo_ext.rewards.judge_client import Budget, Endpoint, JudgeError
from grpo_ext.rollouts.vllm.server import Refused, Server, ServerDown
from grpo_ext.trust import open_url

KEY = "the-key-of-a-test"


@contextmanager
def listening(status: int = 200, to: str = "") -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A server's address and the headers of each request that it got; with `to` it sends everyone there."""
    seen: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            seen.append(dict(self.headers))
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(status)
            if to:
                self.send_header("Location", to + self.path)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        do_GET = do_POST = answer

        def log_message(self, *args: Any) -> None:
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_key_follows_a_redirect(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    # The same address with another name of the host, as a stranger's would be
    with listening() as (other, got), listening(status, other.replace("127.0.0.1", "localhost")) as (url, asked):
        with pytest.raises((Refused, ServerDown), match=str(status)):
            Server(url).models()
        with pytest.raises((Refused, ServerDown), match=str(status)):
            Server(url).complete({"prompt": [1]})
        with pytest.raises(JudgeError, match=str(status)):
            Endpoint(f"{url}/v1", "judge", retries=0).ask("text", Budget())
    assert [headers["Authorization"] for headers in asked] == [f"Bearer {KEY}"] * 3
    assert not got


def test_certificates_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    contexts: list[ssl.SSLContext] = []

    def connect(self: Any) -> None:
        contexts.append(self._context)
        raise OSError("no network in a test")

    monkeypatch.setattr(http.client.HTTPSConnection, "connect", connect)
    with pytest.raises(OSError, match="no network"):
        open_url(urllib.request.Request("https://localhost:1/"), 1.0)
    (context,) = contexts
    assert context.verify_mode is ssl.CERT_REQUIRED and context.check_hostname


@pytest.mark.parametrize("url", ["http://me:secret@host:8000", "https://secret@host"])
def test_no_address_holds_a_password(url: str, tmp_path: Path) -> None:
    fields: dict[str, Any] = {"use_vllm": True, "vllm_sync": "adapter", "vllm_server_urls": [url]}
    with pytest.raises(ValueError, match="`vllm_server_urls` has an address with a user or a password") as config:
        GRPOExtConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **fields)
    with pytest.raises(ValueError, match="`vllm_server_urls` has an address with a user or a password") as command:
        checked(parser().parse_args(["model", "--vllm_server_urls", url]))
    with pytest.raises(ValueError, match="without a user or password") as judge:
        Endpoint(url, "judge")
    assert not any("secret" in str(error.value) for error in (config, command, judge))
