"""Groups of completions as plain values, for whoever shows or keeps them."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

# {"prompt": str, "completions": [{"completion", "reward", "rewards", "advantage"}, ...]}, the best completion first.
Group = dict[str, Any]
Groups = Callable[[], list[Group]]


def readable(value: str | Sequence[Mapping[str, Any]]) -> str:
    """The text of a prompt or a completion: itself, or its messages, each after its role where there are several.

    Args:
        value: text or messages.

    Returns:
        One string; what is no text (an image, a call of a tool) is named in brackets.
    """
    if isinstance(value, str):
        return value
    if len(value) == 1:
        return _content(value[0])
    return "\n\n".join(f"{message.get('role', '?')}: {_content(message)}" for message in value)


def _content(message: Mapping[str, Any]) -> str:
    content = message.get("content") or ""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    texts = [part["text"] if part.get("type") == "text" else f"[{part.get('type')}]" for part in parts]
    calls = [f"[call {call.get('function', call)}]" for call in message.get("tool_calls") or ()]
    return "\n".join(text for text in [*texts, *calls] if text)


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def ranked(completion: Mapping[str, Any]) -> tuple[float, float]:
    """Key by which the best completion of a group comes first; one without a reward comes last.

    Args:
        completion: a row of a group.
    """
    reward, advantage = completion.get("reward"), completion.get("advantage")
    return (math.inf if reward is None else -reward, 0.0 if advantage is None else -advantage)


def grouped(
    prompts: Iterable[Any],
    completions: Iterable[Any],
    rewards: Mapping[str, Iterable[float | None]],
    weights: Sequence[float],
    advantages: Iterable[float],
) -> list[Group]:
    """Put rows that follow each other with one prompt into a group, the best first.

    Args:
        prompts: of each row, text or messages.
        completions: of each row, text or messages.
        rewards: by the name of the reward function, a value a row, NaN or None where it does not apply.
        weights: of the reward functions.
        advantages: of each row.

    Returns:
        The groups in the order of their rows. `reward` is the weighted sum, None where no function applies.
    """
    columns = [[_number(value) for value in values] for values in rewards.values()]
    scores = list(zip(*columns, strict=True))
    rows: list[tuple[str, dict[str, Any]]] = []
    for prompt, completion, score, advantage in zip(prompts, completions, scores, advantages, strict=True):
        known = [weight * value for weight, value in zip(weights, score, strict=True) if value is not None]
        row = {
            "completion": readable(completion),
            "reward": sum(known) if known else None,
            "rewards": dict(zip(rewards, score, strict=True)),
            "advantage": _number(advantage),
        }
        rows.append((readable(prompt), row))
    return [
        {"prompt": prompt, "completions": sorted((row for _, row in members), key=ranked)}
        for prompt, members in groupby(rows, key=lambda row: row[0])
    ]
