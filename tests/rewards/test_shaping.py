"""Format reward and soft overlong penalty."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_ext.rewards import ANSWER_FORMATS, correct_final, format_reward, soft_overlong_penalty


def test_format_reward_wants_the_format_at_the_end() -> None:
    completions = ["9 * 2\n#### 18\n", "#### 18\nbye", "18", "#### wrong", "9 * 2 #### 18", ""]
    assert format_reward(completions=completions) == [1.0, 0.0, 0.0, 1.0, 0.0, 0.0]
    boxed = [r"so \boxed{18}", r"so $\boxed{18}$", r"\boxed{18", "#### 18"]
    assert format_reward(completions=boxed, answer_format="boxed") == [1.0, 0.0, 0.0, 0.0]


def test_format_reward_reads_each_row_s_format() -> None:
    chat = [[{"role": "assistant", "content": text}] for text in ["#### 18", "<answer>18</answer>", r"\boxed{18}"]]
    assert format_reward(completions=chat, answer_format=["hash", "tags", "boxed"]) == [1.0, 1.0, 1.0]
    assert format_reward(completions=chat, answer_format=["tags", "boxed", None]) == [0.0, 0.0, 0.0]


def test_correct_final_wants_the_right_answer_at_the_end() -> None:
    completions = ["9 * 2 = 18\n#### 18\n", "#### 18\nbye", "18", "#### 17", "#### 18", ""]
    assert correct_final(completions=completions, answer=["18"] * 4 + [None, "18"]) == [1.0, 0.0, 0.0, 0.0, None, 0.0]


@given(st.text(), st.integers(), st.sampled_from(sorted(ANSWER_FORMATS)))
def test_what_is_rendered_last_has_the_format(text: str, answer: int, name: str) -> None:
    completion = f"{text.rstrip(chr(92))}\n{ANSWER_FORMATS[name].render(str(answer))}\n"
    assert format_reward(completions=[completion], answer_format=[name]) == [1.0]
    assert format_reward(completions=[completion + "and more"], answer_format=[name]) == [0.0]


def test_soft_overlong_penalty_is_equation_13() -> None:
    penalty = soft_overlong_penalty(max_completion_length=100, cache_length=20)
    lengths = [0, 80, 81, 85, 90, 99, 100, 101, 500]
    ids = [[7] * length for length in lengths]
    assert penalty(prompts=["p"] * 9, completions=["c"] * 9, completion_ids=ids, answer=["18"] * 9) == [
        0.0,
        0.0,
        -0.05,
        -0.25,
        -0.5,
        -0.95,
        -1.0,
        -1.0,
        -1.0,
    ]


def test_soft_overlong_penalty_without_cache_is_a_hard_limit() -> None:
    assert soft_overlong_penalty(3, 0)(completion_ids=[[1] * 3, [1] * 4]) == [0.0, -1.0]


def test_soft_overlong_penalty_has_one_name_and_survives_pickling() -> None:
    penalty = soft_overlong_penalty(100, 20)
    assert penalty.__name__ == "soft_overlong_penalty"
    assert pickle.loads(pickle.dumps(penalty))(completion_ids=[[1] * 90]) == [-0.5]


@pytest.mark.parametrize(
    ("lengths", "field"),
    [((0, 0), "max_completion_length"), ((10, 11), "cache_length is 11"), ((10, -1), "cache_length is -1")],
)
def test_soft_overlong_penalty_refuses_lengths(lengths: tuple[int, int], field: str) -> None:
    with pytest.raises(ValueError, match=field):
        soft_overlong_penalty(*lengths)
