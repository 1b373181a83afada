"""Preference pairs: a prompt, a chosen and a rejected answer, from a file, the hub, or built in."""

import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets

from grpo_ext.data.preference_rows import as_pairs
from grpo_ext.data.preference_templates import EVASIVE, POLITE, QUESTIONS, RAMBLING, RUDE, VALUES
from grpo_ext.data.sources import read_json_lines
from grpo_ext.rewards.rows import completion_text, reads

BUILT_IN = "builtin"
# What the rejected answer does wrong, and how often
KINDS = {"rude": 0.3, "rambling": 0.3, "evasive": 0.25, "wrong": 0.15}
# Words of the longest chosen answer, with room for another way to say it
BRIEF = 12


class Preferences(NamedTuple):
    """Pairs to train on and pairs to measure on; no prompt is in both."""

    train: datasets.Dataset
    test: datasets.Dataset


def preference_pairs(
    split: str = "train", size: int = 384, seed: int = 0, conversational: bool = True
) -> datasets.Dataset:
    """Make pairs whose chosen answer is polite, brief and right, and whose rejected one breaks one of the three.

    The answer stands in the prompt, so that a small model can know it. Names, things and numbers of the test split
    are in no training row.

    Args:
        split: "train" or "test".
        size: number of pairs.
        seed: seed of the draws.
        conversational: whether prompts and answers are messages, or else plain strings.

    Returns:
        Rows with `prompt`, `chosen`, `rejected`; `kind`, what is wrong with the rejected answer, a row of `KINDS`;
        and `answer`, the word or number that a right answer names.

    Raises:
        ValueError: An unknown split, or a size below 1.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split is {split!r}; the built-in preferences have train and test.")
    if size < 1:
        raise ValueError(f"size is {size}; it must be at least 1.")
    draw = random.Random(f"{split} {seed}")
    rows = [_pair(draw, split) for _ in range(size)]
    return datasets.Dataset.from_list([_as_messages(row) if conversational else row for row in rows])


def split_values(split: str) -> dict[str, list[str]]:
    """Values of each slot that the rows of a split are made of.

    Args:
        split: "train" or "test".

    Returns:
        Slot to values.
    """
    return {
        slot: [value for place, value in enumerate(values) if (place % 4 == 3) == (split == "test")]
        for slot, values in VALUES.items()
    }


def _pair(draw: random.Random, split: str) -> dict[str, Any]:
    question, sentence, slot = draw.choice(QUESTIONS)
    known = split_values(split)
    values = {name: draw.choice(choices) for name, choices in known.items()}
    right = sentence.format(**values)
    other = draw.choice([value for value in known[slot] if value != values[slot]])
    wrong = sentence.format(**{**values, slot: other})
    kind = draw.choices(list(KINDS), list(KINDS.values()))[0]
    polite, again = draw.choice(POLITE), draw.choice(POLITE)
    rejected = {
        "rude": f"{right} {draw.choice(RUDE)}",
        "rambling": f"{draw.choice(RAMBLING)} {right} {again}",
        "evasive": f"{draw.choice(EVASIVE)} {again}",
        "wrong": f"{wrong} {again}",
    }[kind]
    chosen = f"{right} {polite}"
    prompt = question.format(**values)
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, "kind": kind, "answer": values[slot]}


def _as_messages(row: Mapping[str, Any]) -> dict[str, Any]:
    messages = {"prompt": [{"role": "user", "content": row["prompt"]}]}
    messages |= {side: [{"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")}
    return {**row, **messages}


# What the rule behind the built-in pairs asks of a text and the word that a right answer names
RULE: dict[str, Callable[[str, str], bool]] = {
    "polite": lambda text, answer: text.strip().endswith(POLITE),
    "brief": lambda text, answer: 0 < len(text.split()) <= BRIEF,
    "right": lambda text, answer: answer in [word.strip(".,!?") for word in text.split()],
}


@reads("answer")
def polite_and_brief(completions: Sequence[Any], answer: Sequence[str], **columns: Any) -> list[float]:
    """The rule behind the built-in pairs, to see whether what a reward model taught is what was meant.

    Args:
        completions: B completions.
        answer: B words that a right answer names.
        columns: not read.

    Returns:
        1 where a completion is all of `RULE`, else 0.
    """
    pairs = [(completion_text(row), wanted) for row, wanted in zip(completions, answer, strict=True)]
    return [float(all(part(text, wanted) for part in RULE.values())) for text, wanted in pairs]


def load_preferences(
    name: str = BUILT_IN,
    *,
    split: str = "train",
    test_split: str = "test",
    train_size: int | None = None,
    test_size: int = 128,
    seed: int = 0,
) -> Preferences:
    """Load pairs to train on and pairs to measure on.

    A file or a data set without the test split is divided by prompt, so that no prompt is on both sides.

    Args:
        name: "builtin", a JSON Lines file, or a data set on the hub. Rows have `prompt`, `chosen` and `rejected`, as
            text or as messages; where all are messages the prompt may also be the beginning of both answers.
        split: split of the hub's data set to train on.
        test_split: split of the hub's data set to measure on, if there is one of that name.
        train_size: pairs to train on; None takes all (384 of the built-in ones).
        test_size: pairs to measure on.
        seed: seed of the draws.

    Returns:
        Both.

    Raises:
        ValueError: A row is malformed, or there are too few of them.
        FileNotFoundError: There is no such file or data set.
    """
    if name == BUILT_IN:
        return Preferences(
            preference_pairs("train", 384 if train_size is None else train_size, seed),
            preference_pairs("test", test_size, seed),
        )
    found = _splits(name, split)
    train = as_pairs(found[split], name)
    if test_split in found and test_split != split:
        test = as_pairs(found[test_split], f"{name} {test_split}").shuffle(seed=seed)
        test = test.select(range(min(test_size, len(test))))
    else:
        train, test = divided(train, test_size, seed, name)
    if train_size is not None and train_size < len(train):
        train = train.shuffle(seed=seed).select(range(train_size))
    return Preferences(train, test)


def _splits(name: str, split: str) -> dict[str, Any]:
    """The splits of a file or of a data set on the hub, of which one must be there; a file is that one."""
    if Path(name).suffix not in (".jsonl", ".json"):
        found = _from_hub(name)
    elif Path(name).is_file():
        found = {split: read_json_lines(Path(name), ("chosen", "rejected"))}
    else:
        raise FileNotFoundError(f"`preferences` {name!r} does not exist; name a JSON Lines file.")
    if split not in found:
        raise ValueError(f"`preferences` {name!r} has no split {split!r}; it has: {', '.join(found)}.")
    return found


def _from_hub(name: str) -> dict[str, Any]:
    try:
        return datasets.load_dataset(name)
    # No hub, no such data set there, or one that is a script, which `datasets` never runs
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"`preferences` {name!r} is no file, and the hub did not give a data set of that name ({error}); name a "
            "JSON Lines file, or 'builtin'."
        ) from error


def divided(pairs: datasets.Dataset, test_size: int, seed: int, name: str = "preferences") -> Preferences:
    """Divide pairs by prompt.

    Args:
        pairs: rows with `prompt`.
        test_size: pairs on the test side, or a few more when the last prompt has several.
        seed: seed of the draw.
        name: what to call the pairs in a message.

    Returns:
        Both sides.

    Raises:
        ValueError: Nothing would be left to train on.
    """
    keys = [json.dumps(prompt) for prompt in pairs["prompt"]]
    rows = Counter(keys)
    order = sorted(rows)
    random.Random(seed).shuffle(order)
    held: set[str] = set()
    count = 0
    for key in order:
        if count >= test_size:
            break
        held.add(key)
        count += rows[key]
    if len(held) == len(order):
        raise ValueError(
            f"`preferences` {name!r} has {len(keys)} pairs of {len(order)} prompts, too few to hold out {test_size} "
            "pairs; give more pairs, or hold out fewer."
        )
    sides = [[place for place, key in enumerate(keys) if (key in held) == test] for test in (False, True)]
    return Preferences(pairs.select(sides[0]), pairs.select(sides[1]))
