"""Preference pairs for maths: a right and a wrong answer of the policy's own to the same problem."""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from datasets import Dataset, Features, Value

from grpo_ext.rewards import correct_final
from grpo_ext.rewards.rows import Completion
from grpo_ext.rollouts.solutions import draw_solutions

MESSAGES = [{"role": Value("string"), "content": Value("string")}]
# What a reward function for answers may read beside the completions
NOT_COLUMNS = ("prompt", "prompts", "completions")


class MadePairs(NamedTuple):
    """Pairs, and what became of the problems.

    Attributes:
        pairs: rows with `prompt`, `chosen` and `rejected`, as messages where the prompt has messages.
        counts: `problems`, of which `all_right`, `all_wrong` and `unread` (no solution could be judged) gave no pair;
            `right` and `wrong` solutions, different ones of a problem; and `pairs`.
    """

    pairs: Dataset
    counts: dict[str, int]


def pair_up(
    prompts: Sequence[Completion],
    solutions: Sequence[Sequence[str]],
    scores: Sequence[Sequence[float | None]],
    pairs_per_problem: int = 4,
    seed: int = 0,
) -> MadePairs:
    """Pair right solutions with wrong ones of the same problem.

    Args:
        prompts: P prompts.
        solutions: P lists of solutions.
        scores: P lists of scores; above one half is right, None takes no part.
        pairs_per_problem: pairs of a problem at most, drawn at random from all right times all wrong ones.
        seed: seed of the draws.

    Returns:
        Different pairs, in the order of the problems.

    Raises:
        ValueError: `pairs_per_problem` is below 1.
    """
    if pairs_per_problem < 1:
        raise ValueError(f"`pairs_per_problem` is {pairs_per_problem}; it must be at least 1.")
    draw = random.Random(seed)
    counts = dict.fromkeys(("problems", "all_right", "all_wrong", "unread", "right", "wrong", "pairs"), 0)
    rows: list[dict[str, Any]] = []
    for prompt, texts, values in zip(prompts, solutions, scores, strict=True):
        judged = {text: value > 0.5 for text, value in zip(texts, values, strict=True) if value is not None}
        right = [text for text, good in judged.items() if good]
        wrong = [text for text, good in judged.items() if not good]
        counts["problems"] += 1
        counts["right"] += len(right)
        counts["wrong"] += len(wrong)
        if not right or not wrong:
            counts["all_right" if right else "all_wrong" if wrong else "unread"] += 1
            continue
        every = [(one, other) for one in right for other in wrong]
        for chosen, rejected in draw.sample(every, min(pairs_per_problem, len(every))):
            rows.append(_row(prompt, chosen, rejected))
    counts["pairs"] = len(rows)
    talk = bool(prompts) and not isinstance(prompts[0], str)
    kind = MESSAGES if talk else Value("string")
    features = Features(dict.fromkeys(("prompt", "chosen", "rejected"), kind))
    # from_list knows no columns of an empty list
    columns = {name: [row[name] for row in rows] for name in features}
    return MadePairs(Dataset.from_dict(columns, features=features), counts)


def _row(prompt: Completion, chosen: str, rejected: str) -> dict[str, Any]:
    if isinstance(prompt, str):
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    sides = {"chosen": chosen, "rejected": rejected}
    return {"prompt": prompt, **{side: [{"role": "assistant", "content": text}] for side, text in sides.items()}}


def make_pairs(
    policy: Any,
    tokenizer: Any,
    problems: Dataset,
    *,
    samples: int = 8,
    pairs_per_problem: int = 4,
    check: Callable[..., Sequence[float | None]] = correct_final,
    max_completion_length: int = 256,
    temperature: float = 1.0,
    seed: int = 0,
) -> MadePairs:
    """Draw solutions, check their answers, and pair the right with the wrong ones.

    A reward model learns from what the policy itself gets right and wrong (DeepSeekMath 2402.03300, sec. 4.1.4;
    answers are checked by rule as in Math-Shepherd, 2312.08935). A problem whose solutions are all right or all wrong
    gives no pair.

    Args:
        policy: causal language model, with or without an adapter.
        tokenizer: its tokenizer.
        problems: rows with `prompt` and what `check` reads, such as `answer` and `answer_format`.
        samples: solutions of a problem.
        pairs_per_problem: pairs of a problem at most.
        check: reward function that is above one half for a right answer.
        max_completion_length: tokens of a solution at most.
        temperature: of the draws.
        seed: seed of the draws; torch's global random state is left as it was.

    Returns:
        The pairs and what became of the problems.

    Raises:
        ValueError: fewer than two samples.
    """
    if samples < 2:
        raise ValueError(f"`samples` is {samples}; a pair needs at least 2 solutions of a problem.")
    devices = [policy.device] if policy.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        drawn = draw_solutions(policy, tokenizer, problems["prompt"], samples, max_completion_length, temperature)
    columns = _columns(problems, drawn.rows)
    scores = list(check(prompts=[problems["prompt"][row] for row in drawn.rows], completions=drawn.texts, **columns))
    starts = range(0, len(drawn.rows), samples)
    texts = [drawn.texts[start : start + samples] for start in starts]
    return pair_up(
        problems["prompt"], texts, [scores[start : start + samples] for start in starts], pairs_per_problem, seed
    )


def _columns(problems: Dataset, rows: Sequence[int]) -> Mapping[str, list[Any]]:
    chosen = problems.select(rows)
    return {name: chosen[name][:] for name in problems.column_names if name not in NOT_COLUMNS}
