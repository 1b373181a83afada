"""Rewards: checking answers, running programs, form, language, length, a judge, and a guard for reward functions."""

from collections.abc import Callable
from typing import Any

from grpo_ext.rewards.checked import checked
from grpo_ext.rewards.code import code, code_reward
from grpo_ext.rewards.correctness import correct, correct_final, correct_strict, math_verify
from grpo_ext.rewards.formats import ANSWER_FORMATS, AnswerFormat, answer_format_named
from grpo_ext.rewards.json_form import json_reward
from grpo_ext.rewards.judge import judge_reward
from grpo_ext.rewards.language import language_consistency
from grpo_ext.rewards.maths import correct_math, correct_math_strict
from grpo_ext.rewards.sandbox import Limits
from grpo_ext.rewards.shaping import format_reward, soft_overlong_penalty

__all__ = [
    "ANSWER_FORMATS",
    "FACTORIES",
    "REWARDS",
    "AnswerFormat",
    "Limits",
    "answer_format_named",
    "checked",
    "code",
    "code_reward",
    "correct",
    "correct_final",
    "correct_math",
    "correct_math_strict",
    "correct_strict",
    "format_reward",
    "json_reward",
    "judge_reward",
    "language_consistency",
    "math_verify",
    "soft_overlong_penalty",
]

# What `--reward_funcs` of a recipe may name.
REWARDS: dict[str, Callable[..., list[Any]]] = {
    "correct_strict": correct_strict,
    "correct_final": correct_final,
    "correct": correct,
    "math_verify": math_verify,
    "correct_math_strict": correct_math_strict,
    "correct_math": correct_math,
    "format": format_reward,
    "code": code,
    "json": json_reward(),
    "language": language_consistency,
}

# What makes a reward from options, for scripts.
FACTORIES: dict[str, Callable[..., Any]] = {
    "soft_overlong_penalty": soft_overlong_penalty,
    "code_reward": code_reward,
    "json_reward": json_reward,
    "judge_reward": judge_reward,
}
