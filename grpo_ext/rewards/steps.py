"""Steps of a solution: where they begin and end in its text, and at which token each one ends."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from grpo_ext.rewards.formats import ANSWER_FORMATS

# A separator that ends a step, or a function from a text to the ascending offsets at which steps end.
Splitter = str | Callable[[str], Sequence[int]]


@dataclass(frozen=True)
class Step:
    """A step of one completion.

    Attributes:
        text: what it says, without white space around it.
        start: offset in the completion's text.
        end: offset after it, its separator included.
        token: index of its last token among the completion's ids.
        is_last: whether nothing follows it and the completion was not cut off.
    """

    text: str
    start: int
    end: int
    token: int
    is_last: bool = False

    @property
    def is_answer(self) -> bool:
        """Whether it states the final answer in one of `ANSWER_FORMATS`."""
        return any(form.extract(self.text) is not None for form in ANSWER_FORMATS.values())


def step_ends(text: str, splitter: Splitter = "\n") -> list[int]:
    """Offsets at which the steps of a text end, separators included.

    White space alone is no step: it belongs to the step after it, or to the last one.

    Args:
        text: a completion.
        splitter: separator, or a function that gives the offsets.

    Returns:
        Ascending offsets, the last of them `len(text)`; empty where the text has no visible character.

    Raises:
        ValueError: the separator is empty, or the function's offsets do not ascend inside the text.
    """
    if isinstance(splitter, str):
        if not splitter:
            raise ValueError("the separator of steps is empty; a newline is usual.")
        # A separator whose repetition overlaps itself is found from the left
        ends, at = [], text.find(splitter)
        while at >= 0:
            ends.append(at + len(splitter))
            at = text.find(splitter, ends[-1])
    else:
        ends = [int(end) for end in splitter(text)]
        if any(not 0 < end <= len(text) for end in ends) or any(a >= b for a, b in pairwise(ends)):
            raise ValueError(
                f"a splitter gave the offsets {ends} for a text of {len(text)} characters; they must ascend from 1 "
                f"to {len(text)}."
            )
    kept, start = [], 0
    for end in [*ends, len(text)]:
        if text[start:end].strip():
            kept.append(end)
            start = end
    if kept:
        kept[-1] = len(text)
    return kept


def token_ends(ids: Sequence[int], tokenizer: Any, text: str, offsets: Sequence[int]) -> list[int]:
    """Index of the token that completes the text up to each offset.

    A token may hold several characters, or a separator and what follows it: then the step ends at that token. A
    character may need several tokens: then the step ends at the last of them.

    Args:
        ids: token ids of a completion.
        tokenizer: their tokenizer.
        text: their text without special tokens, as `tokenizer.decode` gives it.
        offsets: ascending offsets from 1 to the length of the text.

    Returns:
        Ascending indices, one an offset.
    """
    pieces = tokenizer.batch_decode([[token] for token in ids], **_AS_WRITTEN)
    if "".join(pieces) == text:
        found, index, length = [], -1, 0
        for offset in offsets:
            while length < offset:
                index += 1
                length += len(pieces[index])
            found.append(index)
        return found
    # Some character is spread over tokens, or a token looks different at the beginning of a text
    found, low = [], 0
    for offset in offsets:
        high = len(ids) - 1
        while low < high:
            middle = (low + high) // 2
            if tokenizer.decode(list(ids[: middle + 1]), **_AS_WRITTEN).startswith(text[:offset]):
                high = middle
            else:
                low = middle + 1
        found.append(low)
    return found


_AS_WRITTEN = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}


def split_steps(
    ids: Sequence[int], tokenizer: Any, splitter: Splitter = "\n", ends: Collection[int] | None = None
) -> list[Step]:
    """Steps of a completion, in order.

    The last step of a finished completion reaches to its end token, so that ending is part of it. What stands behind
    the last separator of a completion that was cut off is no step: nobody knows what it would have become.

    Args:
        ids: token ids of the completion, without padding.
        tokenizer: their tokenizer.
        splitter: separator, or a function from a text to the offsets at which its steps end.
        ends: token ids of which a finished completion ends with one; None counts every completion as finished.

    Returns:
        The steps; none for a completion without a visible character.
    """
    ids = list(ids)
    text = tokenizer.decode(ids, **_AS_WRITTEN)
    offsets = step_ends(text, splitter)
    finished = ends is None or (bool(ids) and ids[-1] in ends)
    complete = offsets
    if not finished and offsets and not _closes(text, splitter):
        complete = offsets[:-1]
    starts = [0, *complete]
    steps = [
        Step(text[start:end].strip(), start, end, token)
        for start, end, token in zip(starts, complete, token_ends(ids, tokenizer, text, complete), strict=False)
    ]
    if finished and steps:
        steps[-1] = replace(steps[-1], token=len(ids) - 1, is_last=True)
    return steps


def _closes(text: str, splitter: Splitter) -> bool:
    """Whether the last visible part of a text is followed by a separator."""
    if isinstance(splitter, str):
        last = text.rfind(splitter)
        return last >= 0 and not text[last + len(splitter) :].strip()
    found = list(splitter(text))
    return bool(found) and not text[found[-1] :].strip()
