"""Pairs from a policy's own answers: right against wrong, of one problem, once each, at most so many."""

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_ext.data.arithmetic import arithmetic
from grpo_ext.models import tiny_policy
from grpo_ext.rewards.rows import completion_text
from grpo_ext.rollouts.pairs import make_pairs, pair_up
from grpo_ext.rollouts.solutions import draw_solutions

# The text says what its score is
SCORED = {"right a": 1.0, "right b": 0.9, "right c": 0.51, "wrong a": 0.0, "wrong b": 0.5, "unread": None}
GROUPS = st.lists(st.lists(st.sampled_from(sorted(SCORED)), min_size=1, max_size=8), min_size=1, max_size=6)


@settings(max_examples=100)
@given(GROUPS, st.integers(1, 5), st.integers(0, 9), st.booleans())
def test_pairs_are_right_by_construction(groups: list[list[str]], cap: int, seed: int, conversational: bool) -> None:
    names = [f"q{i}" for i in range(len(groups))]
    prompts: list[Any] = [[{"role": "user", "content": name}] for name in names] if conversational else names
    made = pair_up(prompts, groups, [[SCORED[text] for text in group] for group in groups], cap, seed)
    found = [(completion_text(row["prompt"]), completion_text(row["chosen"]), completion_text(row["rejected"]))
             for row in made.pairs]  # fmt: skip
    assert len(set(found)) == len(found)
    each = Counter(name for name, *_ in found)
    counts = Counter[str]()
    for name, group in zip(names, groups, strict=True):
        right = {text for text in group if text.startswith("right")}
        wrong = {text for text in group if text.startswith("wrong")}
        assert {(one, other) for asked, one, other in found if asked == name} <= {(a, b) for a in right for b in wrong}
        assert each[name] == min(cap, len(right) * len(wrong))
        counts["right"] += len(right)
        counts["wrong"] += len(wrong)
        counts["all_right"] += bool(right and not wrong)
        counts["all_wrong"] += bool(wrong and not right)
        counts["unread"] += not (right or wrong)
    assert {**counts, "problems": len(groups), "pairs": len(found)} == made.counts
    assert all(isinstance(row["chosen"], list) == conversational for row in made.pairs)


def test_a_seed_chooses_among_the_pairs() -> None:
    texts = [f"right {i}" for i in range(6)] + [f"wrong {i}" for i in range(6)]
    scores = [[float(text.startswith("right")) for text in texts]]
    drawn = [pair_up(["q"], [texts], scores, 3, seed).pairs[:] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    with pytest.raises(ValueError, match="`pairs_per_problem` is 0"):
        pair_up(["q"], [texts], scores, 0)


def short_is_right(completions: list[str], answer: list[str], **columns: Any) -> list[float]:
    assert len(completions) == len(answer) == len(columns["prompts"])
    return [float(len(text) < 6 and int(gold) > 0) for text, gold in zip(completions, answer, strict=True)]


def test_solutions_of_a_policy() -> None:
    policy, tokenizer = tiny_policy(seed=0)
    problems = arithmetic("train", 5)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    options: dict[str, Any] = {
        "samples": 6,
        "pairs_per_problem": 2,
        "check": short_is_right,
        "max_completion_length": 12,
    }
    made = make_pairs(policy, tokenizer, problems, **options)
    assert torch.equal(state, torch.get_rng_state())
    assert made.counts["problems"] == 5 and 0 < made.counts["pairs"] <= 10
    for row in made.pairs:
        assert row["prompt"] in problems["prompt"][:]
        assert len(completion_text(row["chosen"])) < 6 <= len(completion_text(row["rejected"]))
    assert make_pairs(policy, tokenizer, problems, **options).pairs[:] == made.pairs[:]
    assert make_pairs(policy, tokenizer, problems, **options, seed=1).pairs[:] != made.pairs[:]
    with pytest.raises(ValueError, match="`samples` is 1; a pair needs at least 2"):
        make_pairs(policy, tokenizer, problems, samples=1)


def test_a_model_that_cannot_share_beginnings_draws_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, tokenizer = tiny_policy(seed=0)
    given_prompts = ["abc", "de fgh"]
    torch.manual_seed(0)
    shared = draw_solutions(policy, tokenizer, given_prompts, 3, 8, temperature=1e-4)
    monkeypatch.setattr("grpo_ext.rollouts.solutions.undecodable", lambda model: "has windows")
    torch.manual_seed(0)
    plain = draw_solutions(policy, tokenizer, given_prompts, 3, 8, temperature=1e-4)
    assert plain.draw.share is False and shared.draw.share is True
    assert plain.ids == shared.ids and plain.rows == [0, 0, 0, 1, 1, 1]
