"""The states that callbacks are called with."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest


@pytest.fixture
def log() -> Callable[..., None]:
    """Call a callback as transformers does after a step was logged."""

    def send(callback: Any, step: int, main: bool = True, **logs: Any) -> None:
        state = SimpleNamespace(global_step=step, is_world_process_zero=main)
        callback.on_log(None, state, None, logs={"reward": 0.5, **logs} if logs.pop("training", True) else logs)

    return send


@pytest.fixture
def groups() -> list[dict[str, Any]]:
    """Two groups, of which the second teaches something."""

    def row(text: str, reward: float | None, advantage: float = 0.0) -> dict[str, Any]:
        return {"completion": text, "reward": reward, "rewards": {"a": reward, "b": 0.0}, "advantage": advantage}

    return [
        {"prompt": "dead?", "completions": [row("same", 1.0), row("same too", 1.0)]},
        {"prompt": "alive?", "completions": [row("right", 1.0, 0.7), row("middle", 0.5), row("wrong", 0.0, -0.7)]},
    ]
