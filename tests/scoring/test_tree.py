"""token_tree: what it shares, what its mask means, and where each prediction is read."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grpo_ext.scoring.tree import TokenTree, rows_of, token_tree

# Few different tokens and short rows, so that rows share beginnings of every length
tokens = st.integers(1, 3)
rows = st.lists(
    st.tuples(st.lists(tokens, min_size=1, max_size=4), st.lists(tokens, max_size=5)), min_size=1, max_size=8
)


def build(pairs: list[tuple[list[int], list[int]]], width: int = 5) -> TokenTree:
    prompts, completions = zip(*pairs, strict=True)
    return token_tree([np.array(p) for p in prompts], [np.array(c, dtype=int) for c in completions], width)


def path_of(tree: TokenTree, node: int) -> list[int]:
    """Tokens that a node attends to, itself last."""
    return tree.ids[tree.mask()[node]].tolist()


@given(pairs=rows)
def test_every_prediction_sees_exactly_its_own_row(pairs: list[tuple[list[int], list[int]]]) -> None:
    tree = build(pairs)
    for row, (prompt, completion) in enumerate(pairs):
        assert (tree.slots[row, len(completion) :] == -1).all()
        for step, token in enumerate(completion):
            slot = tree.slots[row, step]
            assert tree.targets[slot] == token
            assert path_of(tree, int(tree.predictors[slot])) == prompt + completion[:step]


@given(pairs=rows)
def test_the_tree_is_as_small_as_a_trie(pairs: list[tuple[list[int], list[int]]]) -> None:
    tree = build(pairs)
    beginnings = {tuple((p + c[:-1])[:length]) for p, c in pairs if c for length in range(1, len(p) + len(c))}
    assert len(tree) == len(beginnings)
    predictions = {(tuple(p + c[:step]), c[step]) for p, c in pairs for step in range(len(c))}
    assert len(tree.targets) == len(predictions)


@given(pairs=rows)
def test_positions_count_from_the_start_of_the_row(pairs: list[tuple[list[int], list[int]]]) -> None:
    tree = build(pairs)
    assert tree.positions.tolist() == [len(path_of(tree, node)) - 1 for node in range(len(tree))]


@given(pairs=rows)
def test_segments_cover_the_tree_and_have_no_branch(pairs: list[tuple[list[int], list[int]]]) -> None:
    tree, mask = build(pairs), build(pairs).mask()
    covered = [index for segment in tree.segments for index in range(segment.start, segment.stop)]
    assert covered == list(range(len(tree)))
    for segment in tree.segments:
        inside = mask[segment.start : segment.stop, segment.start : segment.stop]
        assert torch.equal(inside, torch.ones_like(inside).tril())
        # The descendants see all of it, and nothing else does
        seen_by = mask[segment.stop :, segment.start : segment.stop]
        assert seen_by[: segment.end - segment.stop].all() and not seen_by[segment.end - segment.stop :].any()


def test_a_group_holds_its_prompt_once() -> None:
    tree = build([([7, 8, 9], [1, 2, 3]), ([7, 8, 9], [4, 5])])
    assert tree.ids.tolist() == [7, 8, 9, 1, 2, 4]
    assert tree.positions.tolist() == [0, 1, 2, 3, 4, 3]
    assert tree.ends.tolist() == [6, 6, 6, 5, 5, 6]
    assert [(s.start, s.stop, s.end) for s in tree.segments] == [(0, 3, 6), (3, 5, 5), (5, 6, 6)]


def test_nothing_to_score_is_an_empty_tree() -> None:
    tree = build([([7, 8], []), ([7], [])])
    assert len(tree) == 0 and tree.segments == () and (tree.slots == -1).all()


def test_a_completion_needs_a_prompt() -> None:
    with pytest.raises(ValueError, match="Row 1 has an empty prompt"):
        build([([7], [1]), ([], [1])])


def test_rows_are_cut_out_of_the_padding() -> None:
    ids = torch.tensor([[0, 5, 6, 7, 0], [8, 9, 4, 0, 0]])
    mask = torch.tensor([[0, 1, 1, 1, 0], [1, 1, 0, 0, 0]])
    prompts, completions = rows_of(ids, mask, 3)
    assert [p.tolist() for p in prompts] == [[5], [8, 9]]
    assert [c.tolist() for c in completions] == [[6, 7], []]
