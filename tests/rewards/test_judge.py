"""The judge reward against a small server over loopback, with the faults that servers have."""

import contextlib
import email.utils
import json
import logging
import multiprocessing
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from grpo_ext.rewards import checked, judge_reward
from grpo_ext.rewards.judge_client import BudgetExhaustedError, Cache, JudgeError

KEY = "sk-of-this-test-0123456789"
Answer = Callable[[BaseHTTPRequestHandler, dict[str, Any], int], None]


def reply(handler: BaseHTTPRequestHandler, body: bytes, status: int = 200, **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def completion(text: str, tokens: int | None = 50) -> bytes:
    usage = {} if tokens is None else {"usage": {"total_tokens": tokens}}
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}], **usage}).encode()


def seven(handler: BaseHTTPRequestHandler, request: dict[str, Any], number: int) -> None:
    reply(handler, completion("It is 3 of 4 right.\nScore: 7"))


class Server:
    """Answers each request by the function `answer`, which gets the number of requests before it."""

    def __init__(self) -> None:
        self.answer: Answer = seven
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        lock, outer = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(outer.requests)
                    outer.requests.append(request)
                    outer.keys.append(self.headers.get("Authorization"))
                # a client that gave up is what some tests are about
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    outer.answer(self, request, number)

            def log_message(self, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    running = Server()
    thread = threading.Thread(target=running.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield running
    running.http.shutdown()
    running.http.server_close()
    thread.join()


def judge(server: Server, **options: Any) -> Any:
    return judge_reward(server.url, "m", **{"backoff": 0.01, "timeout": 5.0, **options})


def test_a_verdict(server: Server) -> None:
    reward = judge(server, template="{low} {high} {prompt} | {completion} | {level}")
    prompts = [[{"role": "system", "content": "s"}, {"role": "user", "content": "u {x}"}]] * 2
    completions = [[{"role": "assistant", "content": "a {y}"}], "b"]
    assert checked(reward)(completions=completions, prompts=prompts, level=[1, 2]) == [0.7, 0.7]
    asked = {request["messages"][0]["content"] for request in server.requests}
    assert asked == {"0 10 system: s\n\nuser: u {x} | a {y} | 1", "0 10 system: s\n\nuser: u {x} | b | 2"}
    assert server.requests[0]["model"] == "m" and server.requests[0]["temperature"] == 0.0
    assert set(server.keys) == {f"Bearer {KEY}"}


def test_without_a_key_none_is_sent(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    assert judge(server)(["a"], prompts=["p"]) == [0.7] and server.keys == [None]
    monkeypatch.setenv("OTHER", "other")
    assert judge(server, api_key_variable="OTHER")(["a"], prompts=["p"]) == [0.7] and server.keys[1] == "Bearer other"


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("Score: 0", 0.0), ("**Score:** 10", 1.0), ("Score: 2\nno,\nscore: 2.5", 0.25), ("Score: [[8]]", 0.8),
        ("Score (0-10): 8", 0.8), ("**Score** (out of 10): 8", 0.8), ("Score: [0-10] 8", 0.8), ('{"score": 8}', 0.8),
        ("Score = 8/10", 0.8), ("Score (0-10) is 8", None), ("Score: 11", None), ("Score: -1", None), ("7", None),
        ("Score: nan", None), ("", None),
    ],
)  # fmt: skip
def test_the_number_in_a_reply(server: Server, text: str, score: float | None) -> None:
    server.answer = lambda handler, request, number: reply(handler, completion(text))
    assert judge(server)(["a"], prompts=["p"]) == [score]
    assert len(server.requests) == 1
    if score is None:
        with pytest.raises(JudgeError, match="no number from 0 to 10"):
            judge(server, on_failure="raise")(["a"], prompts=["p"])


def drips(handler: BaseHTTPRequestHandler, request: dict[str, Any], number: int) -> None:
    handler.send_response(200)
    handler.end_headers()
    for _ in range(40):
        handler.wfile.write(b" ")
        time.sleep(0.05)


FAULTS: dict[str, Answer] = {
    "500": lambda handler, request, number: reply(handler, b"no", 500),
    "522": lambda handler, request, number: reply(handler, b"", 522),
    "503": lambda handler, request, number: reply(handler, b"", 503),
    "429": lambda handler, request, number: reply(handler, b"", 429, Retry_After="0"),
    "garbage": lambda handler, request, number: reply(handler, b"\xff<html>"),
    "other JSON": lambda handler, request, number: reply(handler, b'{"choices": []}'),
    "a list": lambda handler, request, number: reply(handler, b"[1]"),
    "no text": lambda handler, request, number: reply(handler, b'{"choices": [{"message": {"content": null}}]}'),
    "deep JSON": lambda handler, request, number: reply(handler, b"[" * 100_000),
    "too long": lambda handler, request, number: reply(handler, b" " * 2_000_000),
    "cut off": lambda handler, request, number: handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nx"),
    "no HTTP": lambda handler, request, number: handler.wfile.write(b"hello\r\n\r\n"),
    "slow": lambda handler, request, number: time.sleep(0.8),
    "drips": drips,
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_fault_that_passes(server: Server, fault: Answer) -> None:
    server.answer = lambda handler, request, number: (fault if number < 2 else seven)(handler, request, number)
    assert judge(server, timeout=0.4)(["a"], prompts=["p"]) == [0.7]
    assert len(server.requests) == 3


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_fault_that_stays(server: Server, fault: Answer) -> None:
    server.answer = fault
    start = time.monotonic()
    assert judge(server, timeout=0.4, retries=1)(["a"], prompts=["p"]) == [None]
    assert len(server.requests) == 2 and time.monotonic() - start < 4
    with pytest.raises(JudgeError, match=r"127.0.0.1.* \(1 tries\)"):
        judge(server, timeout=0.4, retries=0, on_failure="raise")(["a"], prompts=["p"])


@pytest.mark.parametrize("status", [400, 401, 403, 404, 301, 307])
def test_a_refusal_is_not_repeated(server: Server, status: int) -> None:
    server.answer = lambda handler, request, number: reply(handler, b"", status, Location=f"{server.url}/elsewhere")
    with pytest.raises(JudgeError, match=f"status {status}"):
        judge(server, on_failure="raise")(["a"], prompts=["p"])
    assert len(server.requests) == 1


def test_an_address_where_nobody_is(server: Server) -> None:
    reward = judge_reward("http://127.0.0.1:9/v1", "m", retries=1, backoff=0.01, on_failure="raise")
    with pytest.raises(JudgeError, match=r"could not be reached \(ConnectionRefusedError\) \(2 tries\)"):
        reward(["a"], prompts=["p"])


@pytest.mark.parametrize("date", [False, True])
def test_the_wait_that_the_server_asks_for(server: Server, date: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("grpo_ext.rewards.judge_client.time.sleep", waits.append)
    when = email.utils.formatdate(time.time() + 30, usegmt=True) if date else "30"
    busy: Answer = lambda handler, request, number: reply(handler, b"", 429, Retry_After=when)  # noqa: E731
    server.answer = lambda handler, request, number: (busy if number < 1 else seven)(handler, request, number)
    assert judge(server)(["a"], prompts=["p"]) == [0.7]
    assert len(waits) == 1 and waits[0] == pytest.approx(30, abs=3)
    server.requests.clear()
    assert judge(server, max_wait=2.0)(["a"], prompts=["p"]) == [0.7] and waits[1] == 2.0


def test_the_wait_doubles(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("grpo_ext.rewards.judge_client.time.sleep", waits.append)
    server.answer = FAULTS["500"]
    assert judge(server, retries=4, backoff=1.0)(["a"], prompts=["p"]) == [None]
    assert [low <= wait <= 2 * low for low, wait in zip([0.5, 1, 2, 4], waits, strict=True)] == [True] * 4


def test_the_cache(server: Server, tmp_path: Path) -> None:
    completions, prompts = ["a", "b", "a", "a"], ["p"] * 4
    assert judge(server, cache=tmp_path)(completions, prompts=prompts) == [0.7] * 4
    assert len(server.requests) == 2  # equal completions are judged once
    assert judge(server, cache=tmp_path)(completions, prompts=prompts) == [0.7] * 4
    assert judge(server, cache=tmp_path, high=14.0, template="{low} {completion}")(["a"]) == [0.5]
    assert len(server.requests) == 3
    [judge(server, cache=tmp_path, temperature=1.0)(["a"], prompts=["p"])]
    assert len(server.requests) == 4  # another request is another verdict
    files = list(tmp_path.rglob("*.json"))
    assert len(files) == 4 and not list(tmp_path.rglob("*.part"))
    for file in files:
        assert KEY not in file.read_text(encoding="utf-8")
        file.write_text("{", encoding="utf-8")  # damaged
    assert judge(server, cache=tmp_path)(["a"], prompts=["p"]) == [0.7] and len(server.requests) == 5


def test_a_reply_without_a_number_is_not_kept(server: Server, tmp_path: Path) -> None:
    server.answer = lambda handler, request, number: reply(handler, completion("?" if number == 0 else "Score: 1"))
    reward = judge(server, cache=tmp_path)
    assert [reward(["a"], prompts=["p"]) for _ in range(3)] == [[None], [0.1], [0.1]]
    assert len(server.requests) == 2


def _write_often(folder: str, start: int) -> int:
    cache = Cache(folder)
    read = [cache.get("ab" + "0" * 62) for _ in range(100) if cache.put("ab" + "0" * 62, f"{start}" * 5000) is None]
    return sum(text is None or len(set(text)) != 1 or len(text) != 5000 for text in read)


def test_processes_share_a_cache(tmp_path: Path) -> None:
    with ProcessPoolExecutor(3, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert list(pool.map(_write_often, [str(tmp_path)] * 3, [1, 2, 3])) == [0, 0, 0]
    assert [file.suffix for file in tmp_path.rglob("*.*")] == [".json"]


def test_the_budget(server: Server, tmp_path: Path) -> None:
    reward = judge(server, max_requests=3, on_budget="none", cache=tmp_path, workers=1)
    assert reward(list("abcde"), prompts=["p"] * 5) == [0.7, 0.7, 0.7, None, None]
    assert reward(["a", "e"], prompts=["p"] * 2) == [0.7, None]  # what is kept costs nothing
    with pytest.raises(BudgetExhaustedError, match="max_requests=2"):
        judge(server, max_requests=2, workers=1)(list("abc"), prompts=["p"] * 3)
    reward = judge(server, max_tokens_total=80, on_budget="none", workers=1)
    assert reward(list("abc"), prompts=["p"] * 3) == [0.7, 0.7, None]
    assert reward.budget.tokens_spent == 100
    server.answer = lambda handler, request, number: reply(handler, completion("Score: 7", None))
    uncounted = judge(server, max_tokens_total=10, on_budget="none", workers=1)
    assert uncounted(list("ab"), prompts=["p"] * 2) == [0.7, None] and uncounted.budget.tokens_spent > 10
    server.answer = FAULTS["500"]
    tried = judge(server, max_requests=2, on_budget="none")
    assert tried(["a"], prompts=["p"]) == [None] and tried.budget.requests_spent == 2


def test_the_key_is_told_to_nobody(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    server.answer = lambda handler, request, number: reply(handler, KEY.encode(), [500, 401][number % 2], X_Key=KEY)
    reward = judge(server, on_failure="raise")
    with caplog.at_level(logging.DEBUG), pytest.raises(JudgeError) as error:
        reward(["a"], prompts=["p"])
    assert "trying again" in caplog.text
    for told in (caplog.text, str(error.value), repr(reward), repr(vars(error.value)), str(pickle.dumps(reward))):
        assert KEY not in told
    assert error.value.__cause__ is None and error.value.__suppress_context__


def test_it_can_be_pickled(server: Server, tmp_path: Path) -> None:
    reward = pickle.loads(pickle.dumps(judge(server, cache=tmp_path, max_requests=1)))
    assert reward(["a"], prompts=["p"]) == [0.7]
    with pytest.raises(BudgetExhaustedError):
        reward(["b"], prompts=["p"])


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"base_url": "localhost:8000"}, "base_url must be"),
        ({"base_url": "file:///etc/passwd"}, "base_url must be"),
        ({"base_url": "http://me:secret@host/v1"}, "without a user"),
        ({"template": "{prompt}"}, "must hold {completion}"),
        ({"template": "{completion.__class__}"}, "plain names"),
        ({"low": 3, "high": 3}, "low=3 must be less than high=3"),
        ({"pattern": "x"}, "exactly one group"),
        ({"on_budget": "stop"}, "on_budget is 'stop'; choose one of raise, none"),
        ({"on_failure": "stop"}, "on_failure is 'stop'"),
        ({"workers": 0}, "workers is 0"),
        ({"timeout": 0}, "timeout=0"),
    ],
)
def test_refusals(options: dict[str, Any], found: str) -> None:
    with pytest.raises(ValueError, match=found) as error:
        judge_reward(**{"base_url": "http://host/v1", "model": "m", **options})
    assert "secret" not in str(error.value)


def test_a_column_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="names 'level', but there is no such column of 2 rows"):
        judge_reward("http://host/v1", "m", template="{completion} {level}")(["a", "b"], level=[1])
