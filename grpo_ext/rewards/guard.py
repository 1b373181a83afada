"""A guard around what the trainer calls for rewards: tries again, gives up after a time, and never lets an error out.

A process that left TRL's scoring by an exception would keep the others waiting where rewards are gathered. So what
has failed for good gives `FAILED` for each of its rows, which all processes see in what they gather, and the trainer
stops them together.
"""

import asyncio
import functools
import inspect
import logging
import math
import queue
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from grpo_ext.faults import Caught
from grpo_ext.rewards.checked import BadRewards, validated

logger = logging.getLogger("grpo_ext")

Rewards = list[float | None]

# What stands for a row whose reward function has stopped the run; no reward that is let through is infinite
FAILED = math.inf
# A larger one overflows float32 when it is squared for a standard deviation
LARGEST = math.sqrt(torch.finfo(torch.float32).max)
# Seconds before a call is made again, doubled each time, and at most
PAUSE, LONGEST_PAUSE = 1.0, 60.0
DOUBLINGS = math.ceil(math.log2(LONGEST_PAUSE / PAUSE))
# Arguments through which TRL lets a reward function add to the log
LOGS = ("log_extra", "log_metric")


@dataclass(frozen=True)
class Patience:
    """How long a reward function is waited for, how often it is called again, and what comes after that.

    Attributes:
        timeout: seconds of one call, or None.
        retries: calls after the first one.
        errors: "stop" or "unscorable".
    """

    timeout: float | None = None
    retries: int = 0
    errors: str = "stop"

    def pause(self, attempt: int) -> float:
        """Seconds before the call with a number, of which the first has 0."""
        return min(PAUSE * 2.0 ** min(attempt - 1, DOUBLINGS), LONGEST_PAUSE) if attempt else 0.0

    def longest(self) -> float:
        """Most seconds until a function that hangs at each call has failed for good."""
        growing = min(self.retries, DOUBLINGS)
        pauses = sum(map(self.pause, range(growing + 1))) + (self.retries - growing) * LONGEST_PAUSE
        return (self.timeout or 0.0) * (self.retries + 1) + pauses


class _Hung(TimeoutError):
    """A call took longer than it may."""


class _Call:
    """One call's arguments, and what it adds to the log, which is thrown away when it fails or comes too late."""

    def __init__(self, given: dict[str, Any]) -> None:
        self._logged: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self.given = {**given, **{name: self._later(given[name]) for name in LOGS if name in given}}

    def _later(self, log: Callable[..., None]) -> Callable[..., None]:
        return lambda *args: self._logged.append((log, args))

    def log(self) -> None:
        for log, args in self._logged:
            log(*args)


class Guard:
    """Holds one reward function or reward model to a `Patience`.

    Attributes:
        name: under which the reward is logged.
        problem: why the run must stop, or None; the trainer sets it back.
        cause: what was raised.
    """

    def __init__(self, name: str, patience: Patience) -> None:
        self.name, self.patience = name, patience
        self.problem: str | None = None
        self.cause: BaseException | None = None
        self._told_of_numbers = False

    def around(self, reward: Any) -> Any:
        """What is called in place of a reward function or model.

        Args:
            reward: a function with keyword arguments, a coroutine function, or a sequence classifier.

        Returns:
            The same kind of thing. A function gives one finite number, `None` or `FAILED` per completion.
        """
        if isinstance(reward, torch.nn.Module):
            return GuardedModel(reward, self)
        if inspect.iscoroutinefunction(reward):

            async def guarded(**given: Any) -> Rewards:
                for attempt in range(self.patience.retries + 1):
                    await asyncio.sleep(self.patience.pause(attempt))
                    call = _Call(given)
                    with Caught() as caught:
                        return self._taken(call, await self._awaited(reward(**call.given)), given)
                    self._tell(caught.error, attempt)
                return self._given_up(len(given["completions"]))

        else:

            def guarded(**given: Any) -> Rewards:  # type: ignore[misc]
                def attempt() -> Rewards:
                    call = _Call(given)
                    return self._taken(call, self.within(lambda: reward(**call.given)), given)

                return self.settled(attempt, len(given["completions"]))

        return functools.update_wrapper(guarded, reward)

    def settled(self, attempt: Callable[[], Rewards], rows: int) -> Rewards:
        """The rewards of the first attempt that succeeds.

        Args:
            attempt: returns rewards or raises.
            rows: how many completions there are.

        Returns:
            A number or `None` for each of them; `None` or `FAILED` for all when no attempt succeeds.
        """
        for number in range(self.patience.retries + 1):
            time.sleep(self.patience.pause(number))
            with Caught() as caught:
                return attempt()
            self._tell(caught.error, number)
        return self._given_up(rows)

    # One attempt

    def within(self, call: Callable[[], Any]) -> Any:
        """What a call returns, waited for as long as it may take; then its thread is left to itself.

        Args:
            call: returns what the function returns.

        Raises:
            TimeoutError: it took longer, or what the call raises.
        """
        seconds = self.patience.timeout
        if seconds is None:
            return call()
        answer: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        # A new thread is on the first GPU
        device = torch.cuda.current_device() if torch.cuda.is_initialized() else None

        def work() -> None:
            value = None
            with Caught() as caught:
                if device is not None:
                    torch.cuda.set_device(device)
                value = call()
            answer.put((value, caught.error))

        threading.Thread(target=work, name=f"reward {self.name}", daemon=True).start()
        try:
            # Signals are handled while the main thread waits here
            value, error = answer.get(timeout=seconds)
        except queue.Empty:
            raise _Hung from None
        if error is not None:
            raise error
        return value

    async def _awaited(self, coroutine: Any) -> Any:
        try:
            async with asyncio.timeout(self.patience.timeout) as limit:
                return await coroutine
        except TimeoutError:
            if limit.expired():
                raise _Hung from None
            raise

    def _taken(self, call: _Call, returned: Any, given: dict[str, Any]) -> Rewards:
        rewards = self.numbers(returned, len(given["completions"]))
        call.log()
        return rewards

    def numbers(self, returned: Any, rows: int) -> Rewards:
        """What a call returned, with `None` for a number that no advantage can be made of.

        Args:
            returned: what the function returned.
            rows: how many completions there are.

        Raises:
            BadRewards: it is not one number or `None` per completion.
        """
        rewards = validated(self.name, returned, rows, finite=False)
        bad = [row for row, value in enumerate(rewards) if value is not None and not abs(value) < LARGEST]
        if bad and not self._told_of_numbers:
            self._told_of_numbers = True
            logger.warning(
                "Rewards: %r returned %s for row %d of %d; such a row counts as one that it cannot score, which is "
                "not told again.",
                self.name,
                rewards[bad[0]],
                bad[0],
                rows,
            )
        return [None if row in set(bad) else value for row, value in enumerate(rewards)] if bad else rewards

    # Between attempts

    def _tell(self, error: BaseException | None, attempt: int) -> None:
        self.cause = error
        if attempt < self.patience.retries:
            pause = self.patience.pause(attempt + 1)
            logger.warning("Rewards: %s; called again in %g s.", self._what_happened(), pause)

    def _what_happened(self) -> str:
        error = self.cause
        if isinstance(error, BadRewards):
            return str(error).rstrip(".")
        if isinstance(error, _Hung):
            return f"reward function {self.name!r} gave no rewards within `reward_timeout` {self.patience.timeout:g} s"
        frames = traceback.extract_tb(error.__traceback__) if error is not None else []
        place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
        words = " ".join(str(error).split())
        return f"reward function {self.name!r} raised {type(error).__name__}{f' ({words})' if words else ''}{place}"

    def _given_up(self, rows: int) -> Rewards:
        tries = self.patience.retries + 1
        what = self._what_happened() + (f", the last of {tries} times" if tries > 1 else "")
        if self.patience.errors == "unscorable":
            logger.warning("Rewards: %s; it scores none of these %d completions.", what, rows)
            self.cause = None
            return [None] * rows
        self.problem = (
            f"{what[0].upper()}{what[1:]}; mend it, or set `reward_retries`, or reward_errors='unscorable' to go on "
            "without its rewards."
        )
        return [FAILED] * rows


class GuardedModel(torch.nn.Module):
    """A reward model behind a guard, as TRL calls it.

    Args:
        model: sequence classifier.
        guard: its guard.
    """

    def __init__(self, model: torch.nn.Module, guard: Guard) -> None:
        super().__init__()
        self.model, self.guard = model, guard

    def forward(self, **inputs: Any) -> SimpleNamespace:
        """Scores of B texts.

        Args:
            inputs: what the model takes, `input_ids` (B, T) among it.

        Returns:
            `logits`, (B, 1) in float32, NaN where there is no score.
        """
        rows = len(inputs["input_ids"])

        def scores() -> Any:
            # A thread begins with gradients
            with torch.inference_mode():
                return self.model(**inputs).logits[:, 0].float().cpu()

        rewards = self.guard.settled(lambda: self.guard.numbers(self.guard.within(scores), rows), rows)
        return SimpleNamespace(logits=as_column(rewards, inputs["input_ids"].device))


def as_column(rewards: Sequence[float | None], device: torch.device) -> torch.Tensor:
    """(B, 1) rewards in float32, NaN for None."""
    return torch.tensor([math.nan if value is None else value for value in rewards], device=device)[:, None]
