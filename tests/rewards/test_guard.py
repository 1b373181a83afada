"""The guard around reward functions: patience, what is taken for a reward, and what others see of a failure."""

import asyncio
import inspect
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grpo_ext.rewards import checked, guard
from grpo_ext.rewards.guard import FAILED, LARGEST, Guard, Patience

CALL: dict[str, Any] = {"prompts": ["p"] * 3, "completions": ["a", "b", "c"], "completion_ids": [[1], [1], [1]]}


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What is waited for between attempts, which takes no time."""
    found: list[float] = []

    async def sleep(seconds: float) -> None:
        found.append(seconds)

    monkeypatch.setattr(guard, "time", SimpleNamespace(sleep=found.append))
    monkeypatch.setattr(guard, "asyncio", SimpleNamespace(sleep=sleep, timeout=asyncio.timeout))
    return found


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """Ends calls that hang."""
    event = threading.Event()
    yield event
    event.set()


def guarded(function: Callable[..., Any], **patience: Any) -> tuple[Guard, Callable[..., Any]]:
    made = Guard("length", Patience(**patience))
    wrapped = made.around(checked(function, finite=False))
    return made, (lambda **given: asyncio.run(wrapped(**given))) if inspect.iscoroutinefunction(wrapped) else wrapped


def asynchronous(function: Callable[..., Any]) -> Callable[..., Any]:
    async def length(**given: Any) -> Any:
        return function(**given)

    return length


def fails(times: int, then: Any = (1.0, None, 0.5)) -> Callable[..., Any]:
    calls: list[None] = []

    def length(**given: Any) -> Any:
        calls.append(None)
        if len(calls) <= times:
            raise KeyError("answer")
        return then

    return length


BOTH = pytest.mark.parametrize("kind", [lambda function: function, asynchronous], ids=["function", "coroutine"])


@BOTH
def test_a_call_is_made_again_after_growing_pauses(
    kind: Any, pauses: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    made, function = guarded(kind(fails(3)), retries=3)
    assert function(**CALL) == [1.0, None, 0.5] and made.problem is None
    assert pauses == [0.0, 1.0, 2.0, 4.0]
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 3 and said[2].endswith("called again in 4 s.")
    assert said[0].startswith("Rewards: reward function 'length' raised KeyError ('answer') at test_guard.py:")


def test_a_pause_has_an_end() -> None:
    made = Guard("length", Patience())
    assert [made.patience.pause(attempt) for attempt in (0, 1, 7, 50)] == [0.0, 1.0, 60.0, 60.0]


@BOTH
def test_what_fails_for_good_stops(kind: Any, pauses: list[float]) -> None:
    made, function = guarded(kind(fails(9)), retries=2)
    assert function(**CALL) == [FAILED] * 3 and len(pauses) == 3
    assert made.problem is not None and isinstance(made.cause, KeyError)
    assert "raised KeyError ('answer') at test_guard.py:" in made.problem
    assert "the last of 3 times; mend it, or set `reward_retries`" in made.problem


@BOTH
def test_or_scores_nothing(kind: Any, pauses: list[float], caplog: pytest.LogCaptureFixture) -> None:
    made, function = guarded(kind(fails(9)), errors="unscorable")
    assert function(**CALL) == [None] * 3 and made.problem is None
    assert "it scores none of these 3 completions." in caplog.text


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        ([1.0, 2.0], "returned 2 rewards for 3 completions (row 2 is the first without a counterpart)"),
        ("good", "returned 'good' (str) instead of a list"),
        (torch.ones(3, 1), "returned an array of shape (3, 1), not (3,)"),
        ([1.0, "good", 0.0], "returned 'good' (str) for row 1"),
        (None, "returned None (NoneType) instead of a list"),
    ],
)
def test_what_is_no_list_of_rewards_is_a_failure(returned: Any, words: str) -> None:
    made, function = guarded(lambda **given: returned)
    assert function(**CALL) == [FAILED] * 3
    assert made.problem is not None and words in made.problem and made.problem.startswith("Reward function '")


def test_leaving_the_program_is_a_failure_and_ctrl_c_is_none() -> None:
    made, function = guarded(lambda **given: sys.exit(0))
    assert function(**CALL) == [FAILED] * 3 and "SystemExit (0)" in (made.problem or "")

    def pressed(**given: Any) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        guarded(pressed)[1](**CALL)


# Numbers


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True) | st.none(), min_size=1, max_size=6))
def test_no_number_passes_that_an_advantage_cannot_be_made_of(values: list[float | None]) -> None:
    _, function = guarded(lambda completions: values)
    found = function(completions=["a"] * len(values))
    for value, reward in zip(values, found, strict=True):
        good = value is not None and math.isfinite(value) and abs(value) < LARGEST
        assert reward == (value if good else None)
    squares = torch.tensor([value or 0.0 for value in found]).square()
    assert squares.isfinite().all()


def test_a_bad_number_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    values = iter([[0.0, math.nan, 1.0], [math.inf] * 3, [-math.inf] * 3])
    _, function = guarded(lambda **given: next(values))
    assert [function(**CALL) for _ in range(3)] == [[0.0, None, 1.0], [None] * 3, [None] * 3]
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("Rewards: 'length' returned nan for row 1 of 3; such a row counts as one that it cannot")


# Time


def test_a_call_that_hangs_is_given_up(release: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "PAUSE", 0.0)
    calls: list[bool] = []

    def hangs(**given: Any) -> list[float]:
        calls.append(threading.current_thread().daemon)
        if len(calls) < 3:
            release.wait(20)
        return [1.0] * 3

    made, function = guarded(hangs, timeout=0.1, retries=1)
    assert function(**CALL) == [FAILED] * 3 and calls == [True, True]
    assert "gave no rewards within `reward_timeout` 0.1 s, the last of 2 times" in (made.problem or "")
    patient, function = guarded(hangs, timeout=10.0)
    assert function(**CALL) == [1.0] * 3 and patient.problem is None


def test_a_coroutine_that_hangs_is_cancelled() -> None:
    ended: list[str] = []

    async def hangs(**given: Any) -> list[float]:
        try:
            await asyncio.sleep(20)
        finally:
            ended.append("cancelled")
        return [1.0] * 3

    made, function = guarded(hangs, timeout=0.1)
    assert function(**CALL) == [FAILED] * 3 and ended == ["cancelled"]
    assert "within `reward_timeout` 0.1 s" in (made.problem or "")


@BOTH
def test_a_timeout_of_its_own_is_told_apart(kind: Any) -> None:
    def impatient(**given: Any) -> Any:
        raise TimeoutError("the server's")

    made, function = guarded(kind(impatient), timeout=10.0)
    assert function(**CALL) == [FAILED] * 3
    assert "raised TimeoutError (the server's)" in (made.problem or "")


def test_signals_are_handled_while_it_waits(release: threading.Event) -> None:
    handled: list[float] = []
    began = time.monotonic()
    previous = signal.signal(signal.SIGTERM, lambda *args: handled.append(time.monotonic() - began))
    sender = threading.Timer(0.05, signal.raise_signal, [signal.SIGTERM])
    sender.start()
    try:
        _, function = guarded(lambda **given: release.wait(20), timeout=0.5)
        function(**CALL)
        waited = time.monotonic() - began
    finally:
        sender.join()
        signal.signal(signal.SIGTERM, previous)
    assert len(handled) == 1 and handled[0] < waited and waited >= 0.5


# The log


def test_only_a_call_that_succeeds_adds_to_the_log(pauses: list[float]) -> None:
    logged: list[tuple[Any, ...]] = []
    calls: list[None] = []

    def logging_reward(log_extra: Any, log_metric: Any, **given: Any) -> list[float]:
        calls.append(None)
        log_extra("seen", ["x"] * 3)
        log_metric("tries", float(len(calls)))
        if len(calls) == 1:
            raise ValueError("late")
        return [1.0] * 3

    _, function = guarded(logging_reward, retries=1)
    function(**CALL, log_extra=lambda *args: logged.append(args), log_metric=lambda *args: logged.append(args))
    assert logged == [("seen", ["x"] * 3), ("tries", 2.0)]


# Models


class Scores(torch.nn.Module):
    def __init__(self, logits: Any) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, **inputs: Any) -> Any:
        if isinstance(self.logits, Exception):
            raise self.logits
        assert torch.is_inference_mode_enabled()
        return SimpleNamespace(logits=self.logits)


@pytest.mark.parametrize("timeout", [None, 10.0])
def test_a_reward_model_too(timeout: float | None) -> None:
    ids = torch.ones(2, 3, dtype=torch.long)

    def scored(logits: Any, **patience: Any) -> tuple[Guard, list[float]]:
        made = Guard("model", Patience(timeout, **patience))
        return made, made.around(Scores(logits))(input_ids=ids).logits[:, 0].tolist()

    half = torch.tensor([[0.1, 7.0], [-2.0, 7.0]], dtype=torch.bfloat16)
    made, found = scored(half)
    assert found == half[:, 0].float().tolist() and made.problem is None
    _, found = scored(torch.tensor([[math.nan], [1.0]]))
    assert math.isnan(found[0]) and found[1] == 1.0
    made, found = scored(RuntimeError("CUDA error"))
    assert found == [FAILED] * 2 and "raised RuntimeError (CUDA error)" in (made.problem or "")
    made, found = scored(torch.ones(3, 1))
    assert found == [FAILED] * 2 and "3 rewards for 2 completions" in (made.problem or "")
    _, found = scored(torch.ones(2), errors="unscorable")
    assert all(map(math.isnan, found))


def test_it_looks_like_what_it_guards() -> None:
    def length(**given: Any) -> list[float]:
        """Says how long."""
        return [0.0] * 3

    _, wrapped = guarded(length)
    assert inspect.unwrap(wrapped) is length and wrapped.__name__ == "length"
