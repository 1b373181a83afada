"""Bounded comparison of LaTeX expressions by math-verify."""

import json
import logging
import sys
from pathlib import Path
from types import FrameType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_ext.rewards import symbolic
from grpo_ext.rewards.symbolic import equivalent, read_expressions

TOKENS = st.sampled_from(
    r"1 2 99 x y \pi e i \frac { } { } ( ) [ ] ^ _ + - / , = < \le \sqrt \sin \log ! | \% $ \cup \left( \right) \\ & "
    r"\begin{pmatrix} \end{pmatrix} \pm \infty 0.5 10^{20} \{ \} and \text \circ".split()
)


def test_every_gold_answer_of_math_is_read_and_equals_itself(data_dir: Path) -> None:
    lines = (data_dir / "math500_dev.jsonl").read_text(encoding="utf-8").splitlines()
    answers = [json.loads(line)["answer"] for line in lines]
    assert len(answers) == 250
    for answer, other in zip(answers, answers[1:] + answers[:1], strict=True):
        gold = read_expressions(answer)
        assert gold is not None, answer
        assert equivalent(gold, answer), answer
        assert other == answer or not equivalent(gold, f"{other} + 10007"), (answer, other)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "$ $",
        "1+" * 100 + "1",  # 201 characters
        "(" * 9 + "1" + ")" * 9,
        r"\sum_{k=1}^{9} k",
        r"\int x dx",
        r"\binom{9}{3}",
        "9^{9^{9^9}}",
        "2^{99999}",
        "x^{200}",
        "9!!!!",
        r"\cosh(10^{20})",
        r"e^{10^{10}}",
    ],
)
def test_out_of_bounds_is_unreadable(text: str) -> None:
    assert read_expressions(text) is None
    gold = read_expressions("1")
    assert gold is not None and not equivalent(gold, text)


@pytest.mark.parametrize(
    "text",
    [
        "2^{2018}",
        "20!",
        "x^{100}",
        "(x+1)^{20}",
        r"e^{-x^2/2}",
        r"123456789 \log 2",
        "1000000",
        r"\cos 10^\circ",
        "5.25",
    ],
)
def test_within_bounds_is_readable(text: str) -> None:
    gold = read_expressions(text)
    assert gold is not None and equivalent(gold, text)


@given(st.lists(TOKENS, max_size=30).map("".join))
@settings(deadline=None, max_examples=60)
def test_any_expression_is_survived(text: str) -> None:
    gold = read_expressions(r"\frac{\sqrt{3}}{4}")
    assert gold is not None
    assert equivalent(gold, text) in (True, False)


def test_the_call_budget_stops_work_and_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    gold, long_way = read_expressions("x^2+2x+1"), r"(x+1)^3 \frac{1}{x+1}"
    assert gold is not None and equivalent(gold, long_way)

    def tracer(frame: FrameType, event: str, argument: object) -> None:
        return None

    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        with monkeypatch.context() as tight:
            tight.setattr(symbolic, "MAX_CALLS", 1000)
            assert read_expressions(r"\frac{3}{7} x^5") is None
            assert not equivalent(gold, long_way)
        assert sys.gettrace() is tracer
        assert equivalent(gold, long_way)
    finally:
        sys.settrace(before)


def test_the_warning_about_timeouts_is_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    read_expressions("1")
    with caplog.at_level(logging.WARNING):
        logging.getLogger("math_verify.grader").warning("Timeout is disabled as timeout_seconds is None")
        logging.getLogger("math_verify.grader").warning("something else")
    assert [record.getMessage() for record in caplog.records] == ["something else"]
