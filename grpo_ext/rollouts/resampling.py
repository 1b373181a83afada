"""Resampling without a trainer: which groups have spread, rows of several rounds as one batch, shares of a budget.

Rows are TRL's output dicts: tensors and lists with one entry a completion, and values without rows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from grpo_ext.ops.advantages import dead_groups

Rows = dict[str, Any]

PADDED_LEFT = ("prompt_ids", "prompt_mask")
# What stands at padded positions, where it is not 0; `None` is the padding token.
PADDING: dict[str, float | None] = {
    "prompt_ids": None,
    "completion_ids": None,
    "tool_mask": 1,
    "importance_sampling_ratio": 1,
}


@dataclass
class Group:
    """The completions of one prompt.

    Attributes:
        rows: tensors and lists with one entry a completion.
        live: whether their rewards disagree.
        carried: whether the generation before this one drew them.
    """

    rows: Rows
    live: bool
    carried: bool = False


def has_spread(rewards: Tensor, groups: Tensor, counts: Tensor) -> Tensor:
    """Which groups teach something: two scored rewards that differ, and a token in the loss.

    DAPO 2503.14476 eq. 11 asks for 0 < |{o_i | is_equivalent(a, o_i)}| < G, which is a spread of rewards of 0 and 1.

    Args:
        rewards: (R,), or (R, K) where spread in any of K rewards counts; NaN where not scored.
        groups: (R,) group index of each row, from 0, none left out.
        counts: (R,) bool, whether a row has tokens in the loss.

    Returns:
        (P,) bool.
    """
    columns = rewards.reshape(len(rewards), -1).unbind(1)
    alive = torch.stack([~dead_groups(column, groups) for column in columns]).any(0)
    both = torch.stack([alive, counts]).long()
    found = torch.zeros(2, int(groups.max()) + 1, dtype=torch.long, device=groups.device)
    return found.scatter_reduce_(1, groups.expand(2, -1), both, "amax").all(0)


def loss_mask(rows: Rows) -> Tensor:
    """(R, T) mask of the tokens that enter the loss."""
    return rows["completion_mask"] * rows.get("tool_mask", 1)


def tokens(rows: Rows, pad_token_id: int) -> int:
    """Tokens of prompts and completions, completions that are masked because they were cut off included.

    Args:
        rows: rows with ids and masks.
        pad_token_id: padding token.

    Returns:
        Their number.
    """
    completions = rows["completion_mask"].sum(1)
    # A completion is masked as a whole or not at all
    unmasked = (rows["completion_ids"] != pad_token_id).sum(1)
    return int((rows["prompt_mask"].sum(1) + torch.where(completions > 0, completions, unmasked)).sum())


def split_rows(rows: Rows, sizes: Sequence[int]) -> list[Rows]:
    """Consecutive rows as parts; values without rows are left out.

    Args:
        rows: rows to split.
        sizes: rows of each part; they add up to all of them.

    Returns:
        The parts.

    Raises:
        ValueError: a value has another number of rows.
    """
    total, parts = sum(sizes), [Rows() for _ in sizes]
    for name, value in rows.items():
        if isinstance(value, Tensor) and value.dim() == 0:
            continue
        if len(value) != total:
            raise ValueError(f"`{name}` of a generation has {len(value)} rows where {total} completions were made.")
        end = 0
        for part, size in zip(parts, sizes, strict=True):
            part[name], end = value[end : end + size], end + size
    return parts


def merged(parts: Sequence[Rows], pad_token_id: int) -> Rows:
    """Rows of several rounds as one batch: prompts padded on the left, completions on the right.

    A tensor with a column a completion token is padded with the completions; one of the same width everywhere, such
    as (B, 1), stays as it is. `num_items_in_batch` is counted anew.

    Args:
        parts: rows with the same keys.
        pad_token_id: padding token.

    Returns:
        All rows, in order.

    Raises:
        ValueError: keys differ, or a tensor has a width that belongs neither to prompts nor to completions.
    """
    names = [_row_names(part) for part in parts]
    odd = set().union(*names) - set(names[0]).intersection(*names)
    if odd:
        raise ValueError(f"`{min(odd)}` is in one round of generation and not in another.")
    result: Rows = {}
    for name in names[0]:
        values = [part[name] for part in parts]
        if isinstance(values[0], list):
            result[name] = [row for value in values for row in value]
            continue
        filler = PADDING.get(name, 0)
        like = "prompt_ids" if name in PADDED_LEFT else "completion_ids"
        widths = [part[like].size(1) for part in parts]
        result[name] = _joined(name, values, widths, pad_token_id if filler is None else filler)
    result["num_items_in_batch"] = loss_mask(result).sum()
    return result


def _row_names(rows: Rows) -> list[str]:
    return [name for name, value in rows.items() if isinstance(value, list) or value.dim() > 0]


def _joined(name: str, values: list[Tensor], widths: list[int], filler: float) -> Tensor:
    if len({value.shape[1:] for value in values}) == 1:
        return torch.cat(values)
    if [value.size(1) for value in values] != widths:
        raise ValueError(
            f"`{name}` has widths {[value.size(1) for value in values]} in rounds of {widths} tokens, so it cannot be "
            "padded to one width."
        )
    padded = []
    for value, width in zip(values, widths, strict=True):
        pad = value.new_full((len(value), max(widths) - width, *value.shape[2:]), filler)
        padded.append(torch.cat([pad, value] if name in PADDED_LEFT else [value, pad], dim=1))
    return torch.cat(padded)


def shares(budget: int, wanted: Sequence[bool]) -> list[int]:
    """A budget split as evenly as possible over those who want it, or over all when nobody does.

    Args:
        budget: rows to give away.
        wanted: who wants rows.

    Returns:
        Rows of each; the first ones get the remainder.
    """
    takers = [i for i, wants in enumerate(wanted) if wants] or list(range(len(wanted)))
    given = [0] * len(wanted)
    for place, taker in enumerate(takers):
        given[taker] = budget // len(takers) + (place < budget % len(takers))
    return given


def groups_to_draw(missing: int, live: int, seen: int, most: int) -> int:
    """How many groups give `missing` live ones on average, at the share seen so far: missing (seen + 1)/(live + 1).

    Args:
        missing: live groups that are wanted.
        live: live groups seen.
        seen: groups seen.
        most: limit of a round.

    Returns:
        Groups, at least `missing` but for the limit.
    """
    return min(most, math.ceil(missing * (seen + 1) / (live + 1)))


class PromptStream:
    """Rows of a dataset in an order of its own: none comes again before all have come, then in a new order.

    Args:
        rows: rows of the dataset.
        seed: seed of the order; the global generators are not touched.
    """

    def __init__(self, rows: int, seed: int) -> None:
        self.rows = rows
        self._generator = torch.Generator().manual_seed(seed)
        self._left: list[int] = []

    def take(self, count: int) -> list[int]:
        """The next rows.

        Args:
            count: how many.

        Returns:
            Their indices.
        """
        while len(self._left) < count:
            self._left += torch.randperm(self.rows, generator=self._generator).tolist()
        taken, self._left = self._left[:count], self._left[count:]
        return taken

    def state_dict(self) -> dict[str, Any]:
        """The place in the order, for a checkpoint."""
        return {"generator": self._generator.get_state(), "left": list(self._left)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a place in the order.

        Args:
            state: what `state_dict` gave.
        """
        self._generator.set_state(state["generator"])
        self._left = list(state["left"])
