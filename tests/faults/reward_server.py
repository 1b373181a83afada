"""A judge over loopback that answers as it is told."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# Faults of an answer; "none" is none, and a server that is "down" is not there
FAULTS = ("none", "slow", "errors", "garbage", "silent", "down")


class Server:
    """Scores each text by what stands in it, unless it is told otherwise.

    Attributes:
        fault: one of `FAULTS`.
        url: address for `judge_reward`.
        requests: how many came.
    """

    def __init__(self, fault: str) -> None:
        self.fault, self.requests = fault, 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = self.rfile.read(int(self.headers["Content-Length"]))
                outer.requests += 1
                if outer.fault == "slow":
                    time.sleep(0.4)
                # Who asked may have given up
                with suppress(BrokenPipeError, ConnectionResetError):
                    body = outer.answer(asked)
                    self.send_response(500 if outer.fault == "errors" else 200)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    def answer(self, asked: bytes) -> bytes:
        """The body of an answer."""
        if self.fault == "garbage":
            return b"<html>busy</html>"
        text = "I would rather not say." if self.fault == "silent" else f"Score: {sum(asked) % 11}"
        return json.dumps({"choices": [{"message": {"content": text}}]}).encode()


@contextmanager
def serving(fault: str = "none") -> Iterator[Server]:
    """A server for as long as the context lasts; one that is "down" has an address where nobody is."""
    assert fault in FAULTS
    server = Server(fault)
    if fault == "down":
        server.http.server_close()
        yield server
        return
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        thread.join()
        server.http.server_close()
