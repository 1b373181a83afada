"""Prompts and completions as one token tree: every shared beginning is held once, and nothing is padded.

The tokens of a pack lie in depth-first order. Token i attends to token j exactly when j <= i < ends[j], so two
comparisons are the whole mask. A run of tokens with equal `ends` has no branch inside: a segment.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Segment:
    """Tokens start..stop without a branch between them, and their descendants stop..end."""

    start: int
    stop: int
    end: int


@dataclass(frozen=True, eq=False)
class TokenTree:
    """A pack of N tokens that M distinct predictions are read from.

    Attributes:
        ids: (N,) token ids in depth-first order.
        positions: (N,) depth of each token, which is its position in its row.
        ends: (N,) one past the last descendant of each token.
        segments: the tokens, cut at the branches.
        predictors: (M,) token whose hidden state predicts.
        targets: (M,) token id that is predicted.
        slots: (R, T) prediction of each completion token of each row, -1 where there is none.
    """

    ids: Tensor
    positions: Tensor
    ends: Tensor
    segments: tuple[Segment, ...]
    predictors: Tensor
    targets: Tensor
    slots: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device) -> "TokenTree":
        """The same tree with its tensors on a device."""
        tensors = ("ids", "positions", "ends", "predictors", "targets", "slots")
        return replace(self, **{name: getattr(self, name).to(device) for name in tensors})

    def mask(self) -> Tensor:
        """The (N, N) mask, True where the row attends to the column; for tests and small packs."""
        here = torch.arange(len(self), device=self.ids.device)
        return (here[None, :] <= here[:, None]) & (here[:, None] < self.ends[None, :])


def _shared(left: np.ndarray, right: np.ndarray) -> int:
    """Length of the common beginning."""
    length = min(len(left), len(right))
    different = (left[:length] != right[:length]).nonzero()[0]
    return int(different[0]) if len(different) else length


def _segments(ends: np.ndarray) -> tuple[Segment, ...]:
    starts = np.concatenate([[0], (ends[1:] != ends[:-1]).nonzero()[0] + 1])
    stops = np.concatenate([starts[1:], [len(ends)]])
    return tuple(Segment(int(a), int(b), int(ends[a])) for a, b in zip(starts, stops, strict=True))


def token_tree(prompts: Sequence[np.ndarray], completions: Sequence[np.ndarray], width: int) -> TokenTree:
    """Put rows of prompt and completion into a tree, prompts and beginnings that several rows share once.

    The last token of a completion predicts nothing that is asked for, so it is in the tree only where another row
    goes on from it. Rows without a completion are left out.

    Args:
        prompts: R arrays of token ids, none empty.
        completions: R arrays of token ids.
        width: T, columns of the result; at least the longest completion.

    Returns:
        The tree, on the CPU.

    Raises:
        ValueError: a row has a completion and no prompt, so nothing predicts its first token.
    """
    rows = _sorted_rows(prompts, completions)
    ids: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    ends = np.zeros(sum(len(tokens) for tokens, _ in rows), dtype=np.int64)
    path = np.zeros(max((len(tokens) for tokens, _ in rows), default=0), dtype=np.int64)
    predictors: list[np.ndarray] = []
    previous = np.zeros(0, dtype=np.int64)
    size = 0
    for tokens, index in rows:
        shared = _shared(previous, tokens)
        ends[path[shared : len(previous)]] = size
        path[shared : len(tokens)] = np.arange(size, size + len(tokens) - shared)
        ids.append(tokens[shared:])
        positions.append(np.arange(shared, len(tokens)))
        size += len(tokens) - shared
        predictors.append(path[len(prompts[index]) - 1 : len(tokens)].copy())
        previous = tokens
    ends[path[: len(previous)]] = size

    pairs, slots = _slots([index for _, index in rows], predictors, completions, width)
    return TokenTree(
        ids=torch.from_numpy(np.concatenate([*ids, previous[:0]])),
        positions=torch.from_numpy(np.concatenate([*positions, previous[:0]])),
        ends=torch.from_numpy(ends[:size]),
        segments=_segments(ends[:size]) if size else (),
        predictors=torch.from_numpy(pairs[:, 0].copy()),
        targets=torch.from_numpy(pairs[:, 1].copy()),
        slots=torch.from_numpy(slots),
    )


def _sorted_rows(prompts: Sequence[np.ndarray], completions: Sequence[np.ndarray]) -> list[tuple[np.ndarray, int]]:
    """Tokens that are forwarded and number of each row with a completion.

    Lexicographic order is a depth-first order of the trie: a row's new tokens follow those it shares.
    """
    rows: list[tuple[list[int], int]] = []
    for index, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        if len(completion) and not len(prompt):
            raise ValueError(f"Row {index} has an empty prompt; its first completion token has nothing to follow.")
        if len(completion):
            rows.append((np.concatenate([prompt, completion[:-1]]).tolist(), index))
    return [(np.array(tokens, dtype=np.int64), index) for tokens, index in sorted(rows)]


def _slots(
    order: Sequence[int], predictors: Sequence[np.ndarray], completions: Sequence[np.ndarray], width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of predictor and target, each once, and the (R, T) place among them of every completion token, or -1."""
    slots = np.full((len(completions), width), -1, dtype=np.int64)
    if not order:
        return np.zeros((0, 2), dtype=np.int64), slots
    targets = [np.asarray(completions[index], dtype=np.int64) for index in order]
    every = np.stack([np.concatenate(predictors), np.concatenate(targets)], axis=1)
    pairs, inverse = np.unique(every, axis=0, return_inverse=True)
    places = np.split(inverse.reshape(-1), np.cumsum([len(tokens) for tokens in targets])[:-1])
    for index, place in zip(order, places, strict=True):
        slots[index, : len(place)] = place
    return pairs, slots


def rows_of(input_ids: Tensor, attention_mask: Tensor, num_completion: int) -> tuple[list, list]:
    """Cut a padded batch into its prompts and completions.

    Args:
        input_ids: (B, P + T).
        attention_mask: (B, P + T).
        num_completion: T.

    Returns:
        B prompts and B completions, arrays of token ids.
    """
    ids, mask = input_ids.cpu().numpy(), attention_mask.cpu().numpy().astype(bool)
    cut = ids.shape[1] - num_completion
    prompts = [row[:cut][real[:cut]] for row, real in zip(ids, mask, strict=True)]
    return prompts, [row[cut:][real[cut:]] for row, real in zip(ids, mask, strict=True)]
