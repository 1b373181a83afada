"""Synthetic rollouts: what a step costs depends on the lengths, not on the words."""

from dataclasses import dataclass

import numpy as np

FIRST_TOKEN = 4  # below lie the tokenizer's special tokens


@dataclass(frozen=True)
class Rollouts:
    """Prompts and completions of one generation batch, groups one after another.

    Attributes:
        prompts: P * G lists of ids; the G of a group are equal.
        completions: P * G lists of ids, without an end token.
    """

    prompts: list[list[int]]
    completions: list[list[int]]

    @property
    def rows_tokens(self) -> int:
        """Tokens of all rows, nothing shared and nothing padded."""
        return sum(map(len, self.prompts)) + sum(map(len, self.completions))


def synthetic(
    prompts: int,
    group_size: int,
    prompt_length: int,
    mean: int,
    cap: int,
    shared: float,
    vocabulary: int,
    seed: int,
) -> Rollouts:
    """Groups whose completion lengths are lognormal (sigma 0.5) with a given mean, one of them at the cap.

    Args:
        prompts: P.
        group_size: G.
        prompt_length: tokens of each prompt.
        mean: mean completion length before the cap cuts.
        cap: longest completion, which one row has.
        shared: share of each completion that it has in common with an earlier one of its group, as beams have.
        vocabulary: ids are below it.
        seed: of the draw.

    Returns:
        The rollouts.
    """
    random = np.random.default_rng(seed)
    sigma = 0.5
    lengths = random.lognormal(np.log(mean) - sigma**2 / 2, sigma, prompts * group_size)
    lengths = np.clip(lengths.astype(int), 1, cap)
    lengths[random.integers(len(lengths))] = cap

    def ids(count: int) -> list[int]:
        return [int(token) for token in random.integers(FIRST_TOKEN, vocabulary, count)]

    all_prompts: list[list[int]] = []
    completions: list[list[int]] = []
    for group in range(prompts):
        prompt = ids(prompt_length)
        earlier: list[list[int]] = []
        for length in lengths[group * group_size : (group + 1) * group_size]:
            kept = int(shared * length) if earlier else 0
            # Only an earlier completion that is long enough has a beginning to share
            longest = [row for row in earlier if len(row) >= kept]
            start = longest[random.integers(len(longest))][:kept] if kept and longest else []
            earlier.append(start + ids(int(length) - len(start)))
            all_prompts.append(prompt)
        completions += earlier
    return Rollouts(all_prompts, completions)
