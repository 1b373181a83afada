"""Rewards: reading and checking answers, the form and length of a completion, and a guard for reward functions."""

from collections.abc import Callable
from typing import Any

from grpo_ext.rewards.checked import checked
from grpo_ext.rewards.correctness import correct, correct_final, correct_strict, math_verify
from grpo_ext.rewards.formats import ANSWER_FORMATS, AnswerFormat, answer_format_named
from grpo_ext.rewards.shaping import format_reward, soft_overlong_penalty

__all__ = [
    "ANSWER_FORMATS",
    "REWARDS",
    "AnswerFormat",
    "answer_format_named",
    "checked",
    "correct",
    "correct_final",
    "correct_strict",
    "format_reward",
    "math_verify",
    "soft_overlong_penalty",
]

# What `--reward_funcs` of a recipe may name.
REWARDS: dict[str, Callable[..., list[Any]]] = {
    "correct_strict": correct_strict,
    "correct_final": correct_final,
    "correct": correct,
    "math_verify": math_verify,
    "format": format_reward,
}
