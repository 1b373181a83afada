"""Rows of preference data in the forms in which people publish them, brought into one or refused."""

from collections.abc import Mapping, Sequence
from typing import Any

import datasets

ROLES = ("system", "user", "assistant")
SIDES = ("chosen", "rejected")


def as_pairs(rows: datasets.Dataset, name: str) -> datasets.Dataset:
    """Bring rows into the columns `prompt`, `chosen` and `rejected`, all text or all messages.

    Accepted are text throughout; messages throughout; a prompt of messages with answers of text; and answers that are
    whole conversations, whose common beginning is then the prompt, whatever the column `prompt` says. A pair of two
    equal answers says nothing and is left out.

    Args:
        rows: with `chosen` and `rejected`, and `prompt` unless the answers are whole conversations.
        name: what to call the data in a message.

    Returns:
        The pairs in their order.

    Raises:
        ValueError: A column is missing or a row is malformed; the message names the row, counted from 0, and field.
    """
    for side in SIDES:
        if side not in rows.column_names:
            raise ValueError(
                f"{name} has no column {side!r}; it has: {', '.join(rows.column_names)}. Pairs need prompt, chosen "
                "and rejected."
            )
    pairs = [pair for number, row in enumerate(rows) if (pair := _pair(row, f"{name}, row {number}")) is not None]
    if not pairs:
        raise ValueError(f"{name} has {len(rows)} rows and no pair of two different answers.")
    kinds = {isinstance(pair["prompt"], str) for pair in pairs}
    if len(kinds) == 2:
        raise ValueError(f"{name} mixes prompts of text and of messages; write all rows in one way.")
    return datasets.Dataset.from_list(pairs)


def _pair(row: Mapping[str, Any], where: str) -> dict[str, Any] | None:
    answers: dict[str, Any] = {side: _checked(row[side], side, where) for side in SIDES}
    talks = [isinstance(answer, list) for answer in answers.values()]
    if talks[0] != talks[1]:
        raise ValueError(f"{where}: column 'chosen' and column 'rejected' must both be text, or both messages.")
    prompt = row.get("prompt")
    if all(talks) and _whole(answers["chosen"]) and _whole(answers["rejected"]):
        prompt, answers = _taken_apart(answers, where)
    elif prompt is None:
        raise ValueError(
            f"{where}: column 'prompt' is missing; only answers that are whole conversations can do without it."
        )
    else:
        prompt = _checked(prompt, "prompt", where)
    if isinstance(prompt, str) and all(talks):
        prompt = [{"role": "user", "content": prompt}]
    if isinstance(prompt, list) and not all(talks):
        answers = {side: [{"role": "assistant", "content": text}] for side, text in answers.items()}
    if isinstance(prompt, list) and prompt[-1]["role"] == "assistant":
        raise ValueError(f"{where}: column 'prompt' must not end with a message of the assistant.")
    for side in SIDES:
        if isinstance(answers[side], list) and answers[side][-1]["role"] != "assistant":
            raise ValueError(f"{where}: column {side!r} must end with a message of the assistant.")
    return None if answers["chosen"] == answers["rejected"] else {"prompt": prompt, **answers}


def _whole(messages: Sequence[Mapping[str, str]]) -> bool:
    return messages[0]["role"] != "assistant"


def _taken_apart(answers: Mapping[str, Any], where: str) -> tuple[list[Any], dict[str, Any]]:
    """The common beginning of two conversations, and what follows it in each."""
    chosen, rejected = answers["chosen"], answers["rejected"]
    same = 0
    for one, other in zip(chosen[:-1], rejected[:-1], strict=False):
        if one != other:
            break
        same += 1
    if same == 0:
        raise ValueError(f"{where}: column 'chosen' and column 'rejected' begin with different messages.")
    return chosen[:same], {"chosen": chosen[same:], "rejected": rejected[same:]}


def _checked(value: Any, field: str, where: str) -> str | list[dict[str, str]]:
    """Text, or messages with role and content and nothing else."""
    if isinstance(value, str):
        if not value.strip() and field != "rejected":
            raise ValueError(f"{where}: column {field!r} is empty; it must hold text or messages.")
        return value
    if not isinstance(value, list) or not value:
        raise ValueError(f"{where}: column {field!r} must hold text or messages, found {_brief(value)}.")
    for place, message in enumerate(value):
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise ValueError(
                f"{where}: column {field!r}, message {place} must have a role and a content of text, found "
                f"{_brief(message)}."
            )
        if message.get("role") not in ROLES:
            raise ValueError(
                f"{where}: column {field!r}, message {place} has the role {_brief(message.get('role'))}; it must be "
                f"one of: {', '.join(ROLES)}."
            )
    return [{"role": message["role"], "content": message["content"]} for message in value]


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "..."
