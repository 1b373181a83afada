"""Correctness rewards: GSM8K's gold answers, wrong answers, TRL's calling convention, hostile text, threads."""

import copy
import json
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_ext.rewards import ANSWER_FORMATS, REWARDS, correct, correct_strict, math_verify

ANSWERS = [correct_strict, correct, math_verify]
Reward = Callable[..., list[float | None]]


def as_trl_calls(reward: Reward, completions: list[Any], **columns: list[Any]) -> list[float | None]:
    """Call a reward function with everything that TRL's trainer passes."""
    return reward(
        prompts=["p"] * len(completions),
        completions=completions,
        completion_ids=[[1, 2]] * len(completions),
        trainer_state=None,
        log_extra=lambda column, values: None,
        log_metric=lambda name, value: None,
        **columns,
    )


@pytest.fixture(scope="module")
def gold_answers(data_dir: Path) -> list[str]:
    files = [data_dir / "gsm8k_train.jsonl", data_dir / "gsm8k_test.jsonl"]
    return [json.loads(line)["answer"] for file in files for line in file.read_text(encoding="utf-8").splitlines()]


def test_names_under_which_trl_logs() -> None:
    assert {key: reward.__name__ for key, reward in REWARDS.items()} == {
        "correct_strict": "correct_strict",
        "correct_final": "correct_final",
        "correct": "correct",
        "math_verify": "math_verify",
        "correct_math_strict": "correct_math_strict",
        "correct_math": "correct_math",
        "format": "format_reward",
        "code": "code",
        "json": "json",
        "language": "language_consistency",
    }


@pytest.mark.parametrize("reward", [correct_strict, correct])
def test_all_gold_answers_of_gsm8k_are_correct(reward: Reward, gold_answers: list[str]) -> None:
    assert len(gold_answers) == 7473 + 1319
    assert as_trl_calls(reward, gold_answers, answer=gold_answers) == [1.0] * len(gold_answers)
    numbers = [answer.split("####")[1].strip() for answer in gold_answers]
    for name, row_format in ANSWER_FORMATS.items():
        completions = [f"6 * 3 = 18\n{row_format.render(number)}" for number in numbers]
        assert as_trl_calls(reward, completions, answer=numbers, answer_format=[name] * len(numbers)) == [1.0] * len(
            numbers
        )


@pytest.mark.parametrize("reward", [correct_strict, correct])
def test_no_wrong_answer_of_gsm8k_is_correct(reward: Reward, gold_answers: list[str]) -> None:
    numbers = [int(answer.split("####")[1].replace(",", "")) for answer in gold_answers]
    for change in (lambda n: n + 1, lambda n: -n - 1, lambda n: f"{n}.5", lambda n: f"{n}0", lambda n: f"{n}1"):
        completions = [f"9 eggs\n#### {change(number)}" for number in numbers]
        wrong = [float(change(number)) != number for number in numbers]
        scores = as_trl_calls(reward, completions, answer=numbers)
        assert [score == 0.0 for score in scores] == wrong
        assert sum(wrong) >= len(numbers) - 5  # a gold answer of 0 stays 0 with one more zero


@pytest.mark.parametrize(
    ("completion", "strict", "lenient"),
    [
        ("#### 18", 1.0, 1.0),
        ("#### $18.00", 1.0, 1.0),
        ("#### 18\nIs that right? 5", 1.0, 1.0),
        ("#### 5\n#### 18 eggs", 1.0, 1.0),
        ("The answer is 18.", 0.0, 1.0),
        (r"\boxed{18} is better than 5", 0.0, 1.0),
        ("####  \nso 18", 0.0, 1.0),
        ("#### 7 or 18", 0.0, 1.0),
        ("#### 18 or 7", 0.0, 0.0),
        ("18\n#### 5", 0.0, 0.0),
        ("18 - 3 = 15", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_strict_and_lenient(completion: str, strict: float, lenient: float) -> None:
    assert correct_strict([completion], answer=["18"]) == [strict]
    assert correct([completion], answer=["18"]) == [lenient]


def test_two_answers_are_strictly_wrong_for_both() -> None:
    for gold in ("7", "8"):
        assert correct_strict(["#### 7 or 8"], answer=[gold]) == [0.0]
    assert correct(["the answer is 7 or 8"] * 2, answer=["7", "8"]) == [0.0, 1.0]


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        (r"\frac{3}{4}", "0.75"),
        (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}"),
        ("p - q", "-q + p"),
        ("(1,2)", "(1, 2)"),
        (r"x^2+2x+1", r"(x+1)^2"),
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3, \pi/2)"),
        (r"\text{(A)}", r"\text{(A)}"),
        ("2^{2018}", "4^{1009}"),
        (r"\frac{100!}{98!}", "9900"),
        ("$18$", "18"),
        (18, r"9 \cdot 2"),
        (0.5, r"\frac12"),
    ],
)
def test_math_verify_accepts_equal_expressions(gold: Any, answer: str) -> None:
    assert math_verify([rf"so \boxed{{{answer}}}."], answer=[gold], answer_format="boxed") == [1.0]
    assert math_verify([f"<answer>{answer}</answer>"], answer=[gold], answer_format=["tags"]) == [1.0]
    assert math_verify([rf"\boxed{{{answer}}}"], answer=[gold]) == [1.0]  # asked for "hash", boxed all the same


@pytest.mark.parametrize(
    ("gold", "completion"),
    [
        (r"\frac{3}{4}", r"\boxed{\frac{4}{3}}"),
        ("p - q", r"\boxed{q - p}"),
        ("(1,2)", r"\boxed{(2,1)}"),
        ("18", "18"),  # neither asked-for format nor box
        ("18", r"\boxed{18 or 19}"),
        ("x^2", r"\boxed{\frac{}"),
        ("18", r"\boxed{9^{9^{9^9}}}"),
    ],
)
def test_math_verify_refuses_others(gold: str, completion: str) -> None:
    assert math_verify([completion], answer=[gold], answer_format="boxed") == [0.0]


@pytest.mark.parametrize("reward", ANSWERS)
def test_unreadable_gold_cannot_be_scored(reward: Reward) -> None:
    golds = [None, "", "  ", "{", float("nan"), True, "#### \n", "18"]
    completions = [r"\boxed{18}"] * len(golds)
    scores = as_trl_calls(reward, completions, answer=golds, answer_format=["boxed"] * len(golds))
    assert scores == [None] * 7 + [1.0]


@pytest.mark.parametrize("reward", ANSWERS)
def test_messages_are_read_and_left_alone(reward: Reward) -> None:
    parts = [{"type": "text", "text": "####"}, {"type": "image"}, {"type": "text", "text": " 18"}]
    completions = [
        [{"role": "assistant", "content": "#### 18"}],
        [
            {"role": "assistant", "content": "#### 5"},
            {"role": "tool", "content": "5"},
            {"role": "a", "content": parts},
        ],
        [{"role": "assistant", "content": None, "tool_calls": []}],
        [],
    ]
    columns = {"answer": ["18", 18, "18", 18.0], "answer_format": ["hash", None, "hash", "boxed"]}
    before = copy.deepcopy((completions, columns))
    assert as_trl_calls(reward, completions, **columns) == [1.0, 1.0, 0.0, 0.0]
    assert (completions, columns) == before


@pytest.mark.parametrize("reward", ANSWERS)
def test_wrong_columns_are_named(reward: Reward) -> None:
    with pytest.raises(ValueError, match=f"{reward.__name__}.*column 'answer'"):
        reward(["18"])
    with pytest.raises(ValueError, match="2 entries, expected one entry for each of 1"):
        reward(["18"], answer=["18", "19"])
    with pytest.raises(ValueError, match="one string"):
        reward(["18"], answer="1")
    with pytest.raises(ValueError, match=f"'answer_format' given to reward '{reward.__name__}' has 2 entries"):
        reward(["18"], answer=["18"], answer_format=["hash", "hash"])
    with pytest.raises(ValueError, match=r"'xml'.*hash, boxed, tags"):
        reward(["18"], answer=["18"], answer_format=["xml"])


@given(
    text=st.one_of(st.text(), st.text(alphabet="#8 1.,-$\n\\{}boxed<answer>/½²")),
    gold=st.one_of(st.none(), st.text(), st.integers(), st.floats()),
    name=st.sampled_from(sorted(ANSWER_FORMATS)),
)
def test_any_text_is_survived_and_strict_implies_lenient(text: str, gold: Any, name: str) -> None:
    [strict] = correct_strict([text], answer=[gold], answer_format=[name])
    [lenient] = correct([text], answer=[gold], answer_format=[name])
    assert (strict is None) == (lenient is None)
    assert strict in (0.0, 1.0, None)
    if strict is not None and lenient is not None:
        assert strict <= lenient


HOSTILE = {
    "nested boxes": "\\boxed{" * 100_000 + "1" + "}" * 100_000,
    "nested braces in a box": "\\boxed{" + "{" * 100_000 + "1" + "}" * 100_000 + "}",
    "open braces": "\\boxed{" + "{" * 1_000_000,
    "2 MB of words": "so " * 700_000,
    "2 MB of digits": "#### " + "7" * 2_000_000,
    "2 MB of numbers": "18 " * 700_000,
    "hash lines": "#### 1\n" * 300_000,
    "hashes": "#" * 2_000_000,
    "tags": "<answer>" * 250_000,
    "tower": r"\boxed{9^{9^{9^9}}}",
    "tower of powers": r"\boxed{((9^{999})^{999})^{999}}",
    "factorials": r"\boxed{9!!!!!!}",
    "deep": "\\boxed{" + "(" * 90 + "1" + ")" * 90 + "}",
    "fractions": "\\boxed{" + r"\frac{" * 20 + "1" + "}{2}" * 20 + "}",
    "sum": r"\boxed{\sum_{k=1}^{1000000} k^k}",
    "a coefficient that becomes an exponent": r"\boxed{\frac{12345678901234567890^{2}}{\log(\sqrt{99})}}",
    "hyperbolic": r"\boxed{\sin(\cosh(12345678901234567890))}",
    "high degree": "\\boxed{" + "x^22" * 40 + "}",
    "many factors": r"\boxed{(a+b)(c+d)(e+f)(g+h)(i+j)(k+l)(m+n)(o+p)(q+r)(s+t)(u+v)}",
}


ON_ANSWERS = {name: reward for name, reward in REWARDS.items() if name not in ("code", "json", "language")}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("reward", ON_ANSWERS.values(), ids=ON_ANSWERS)
def test_hostile_text_is_scored_in_time(reward: Reward, text: str) -> None:
    columns = {"answer": [r"\cot x"] if reward is math_verify else ["5"]}
    math_verify(["1"], answer=["1"])  # loads sympy
    for name in ANSWER_FORMATS:
        start = time.process_time()
        scores = as_trl_calls(reward, [text], **columns, answer_format=[name])
        assert time.process_time() - start < 3  # measured: at most 0.8
        assert scores in ([0.0], [1.0])
        assert scores == [0.0] or reward is REWARDS["format"]


SAMPLE = [r"\boxed{\frac{1}{\sqrt{3}}}", r"\boxed{(x+1)^2}", "#### 18", r"\boxed{9^{9^{9^9}}}", "the answer is 7"]
SAMPLE_GOLD = [r"\frac{\sqrt{3}}{3}", "x^2+2x+1", "18", "7", "7"]


def test_threads_agree_with_the_main_thread() -> None:
    for reward in ANSWERS:
        expected = reward(SAMPLE, answer=SAMPLE_GOLD)
        with ThreadPoolExecutor(4) as pool:
            jobs = [pool.submit(reward, SAMPLE, answer=SAMPLE_GOLD) for _ in range(12)]
            assert [job.result(timeout=60) for job in jobs] == [expected] * 12
    assert math_verify(SAMPLE, answer=SAMPLE_GOLD) == [1.0, 1.0, 1.0, 0.0, 0.0]


def test_spawned_processes_agree_with_this_one() -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        for reward in ANSWERS:
            job = pool.submit(reward, SAMPLE, answer=SAMPLE_GOLD)
            assert job.result(timeout=120) == reward(SAMPLE, answer=SAMPLE_GOLD)
