"""A stand-in for a stock vLLM server on the loopback address, with the faults that a test asks for."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

BASE = "models/tiny"
NOT_FOUND = {"error": {"message": "Not Found", "type": "NotFoundError", "code": 404}}


class FakeVLLM:
    """Answers like vLLM; a completion is as long as its prompt and repeats the prompt's first token, then ends.

    Attributes:
        root: model that it says it serves.
        window: `max_model_len`.
        updates: whether adapters can be loaded at run time.
        max_rank: of an adapter.
        raw: whether log-probabilities leave out the temperature.
        answer: what to do with a completion: "right", "garbage", "no ids", "few", "error", "hang" or "close".
        vary: whether the last token of a completion is one of its own.
        fail_after: completions after which it dies; None never.
    """

    def __init__(self, port: int = 0, **fields: Any) -> None:
        self.root, self.window, self.updates, self.max_rank, self.raw = BASE, 64, True, 16, False
        self.answer, self.fail_after, self.seconds, self.version = "right", None, 0.0, "0.31.0"
        self.loading = 0.0
        self.vary = False
        vars(self).update(fields)
        self.adapters: dict[str, str] = {}
        self.weights: list[dict[str, Any]] = []
        self.bodies: list[dict[str, Any]] = []
        self.answered = 0
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self._http.daemon_threads = True
        self.port = self._http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def _handler(fake: "FakeVLLM") -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: Any) -> None:
                """Say nothing."""

            def do_GET(self) -> None:
                self._answer(*fake.get(self.path))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                found = fake.post(self.path, body)
                if found is None:
                    self.close_connection = True
                    self.connection.close()
                    return
                self._answer(*found)

            def _answer(self, code: int, body: Any) -> None:
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(code)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        return Handler

    def get(self, path: str) -> tuple[int, Any]:
        if path == "/version":
            return 200, {"version": self.version}
        if path == "/health":
            return 200, b""
        base = {"id": self.root, "root": self.root, "parent": None, "max_model_len": self.window}
        loaded = [{"id": name, "root": path, "parent": self.root} for name, path in self.adapters.items()]
        return (200, {"data": [base, *loaded]}) if path == "/v1/models" else (404, NOT_FOUND)

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, Any] | None:
        if path == "/v1/completions":
            return self._complete(body)
        if not self.updates:
            return 404, NOT_FOUND
        if path == "/v1/unload_lora_adapter":
            self.adapters.pop(body["lora_name"], None)
            return 200, b"Success"
        return self._load(body["lora_name"], body["lora_path"])

    def _load(self, name: str, path: str) -> tuple[int, Any]:
        if name in self.adapters:
            return 400, {"error": {"message": f"The lora adapter '{name}' has already been loaded."}}
        config = json.loads((Path(path) / "adapter_config.json").read_text())
        if config["r"] > self.max_rank:
            text = f"LoRA rank {config['r']} is greater than max_lora_rank {self.max_rank}."
            return 500, {"error": {"message": text}}
        time.sleep(self.loading)
        self.weights.append(load_file(Path(path) / "adapter_model.safetensors"))
        self.adapters[name] = path
        return 200, b"Success: LoRA adapter added."

    def _complete(self, body: dict[str, Any]) -> tuple[int, Any] | None:
        with self._lock:
            self.bodies.append(body)
            if self.fail_after is not None and self.answered >= self.fail_after:
                self.answer = "close"
            answer = self.answer
            self.answered += answer == "right"
        time.sleep(self.seconds)
        if body["model"] not in self.adapters:
            return 404, {"error": {"message": f"The model `{body['model']}` does not exist."}}
        if len(body["prompt"]) + body["max_tokens"] > self.window:
            return 400, {"error": {"message": "This model's maximum context length is exceeded."}}
        match answer:
            case "garbage":
                return 200, b"<html>Welcome to nginx</html>"
            case "error":
                return 500, {"error": {"message": "EngineCore died"}}
            case "hang":
                time.sleep(30)
            case "close":
                return None
        n = body["n"] - (answer == "few")
        choices = [self._choice(body, index) for index in range(n)]
        # vLLM's own order is that of the index; a client must not rely on it
        return 200, {"choices": choices[::-1]}

    def _choice(self, body: dict[str, Any], index: int) -> dict[str, Any]:
        prompt = body["prompt"]
        tokens = [prompt[0]] * min(len(prompt), body["max_tokens"])
        if body.get("use_beam_search"):
            tokens = [prompt[0] + index] * min(len(prompt), body["max_tokens"])
        if self.vary:
            tokens[-1] = 10 + 20 * index
        likely = -1.0 if self.raw else -1.0 * min(1.0, body["temperature"])
        found: dict[str, Any] = {"index": index, "text": ""}
        if self.answer != "no ids":
            found["token_ids"] = tokens
        if "logprobs" in body:
            logprobs = [-float(index)] * len(tokens)
            found["logprobs"] = {"token_logprobs": logprobs, "top_logprobs": [{"a": likely}] * len(tokens)}
        return found


@contextmanager
def fakes(*each: dict[str, Any]) -> Iterator[list[FakeVLLM]]:
    """Several servers that are stopped at the end."""
    made = [FakeVLLM(**fields) for fields in each]
    try:
        yield made
    finally:
        for server in made:
            server.stop()
