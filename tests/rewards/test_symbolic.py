"""Bounded comparison of LaTeX expressions by math-verify."""

import json
import logging
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType

import mpmath
import pytest
import sympy
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
        r"\sqrt{" * 9 + "2" + "}" * 9,
        r"\sum_{k=1}^{9} k",
        r"\int x dx",
        r"\binom{9}{3}",
        "9^{9^{9^9}}",
        "2^{99999}",
        "x^{200}",
        "9!!!!",
        r"10^{50} x + 1",
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


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("90", r"\log(\sqrt{\log(y)})"),  # simplified by way of a power of a power
        ("p-q", r"\frac{12345678901234567890^{2}}{i^{i} \log(\sqrt{99})}"),
        ("(1,2)", "[99^{12345678901234567890}, 2-x)"),  # an interval is computed while it is parsed
        ("(1,2)", "[((9^{99})^{99})^{99}, 2)"),
        (r"\cot x", r"\sqrt{\frac{\frac{\pi-7}{1000}}{3^{1999}+10^{887}}}"),  # factored by way of a huge prime
        (r"\cot x", "x^22" * 40),
        ("x^2+1", r"\sin(\cosh(12345678901234567890))"),
        (r"\sqrt{2}", r"\sin(\cos(\tan(\sin(\cos(\tan(1))))))"),
    ],
)
def test_what_sympy_cannot_finish_is_stopped(gold: str, answer: str) -> None:
    expressions = read_expressions(gold)
    assert expressions is not None
    start = time.process_time()
    assert not equivalent(expressions, answer)
    assert time.process_time() - start < 3  # measured: at most 0.4


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


def test_interrupted_work_leaves_no_cache_and_no_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    read_expressions("1")
    cached = sympy.Symbol("half_known", real=True)
    assert sympy.Symbol("half_known", real=True) is cached
    monkeypatch.setattr(symbolic, "MAX_CALLS", 10)
    monkeypatch.setattr(mpmath.mp, "prec", 99)
    assert read_expressions(r"\frac{3}{11} x^7") is None
    assert sympy.Symbol("half_known", real=True) is not cached
    assert mpmath.mp.prec == 53


def test_one_thread_at_a_time_is_in_sympy() -> None:
    gold = read_expressions("x+1")
    assert gold is not None
    with ThreadPoolExecutor(1) as pool:
        with symbolic._LOCK:
            job = pool.submit(equivalent, gold, "1+x")
            with pytest.raises(TimeoutError):
                job.result(timeout=0.2)
        assert job.result(timeout=60) is True


@pytest.mark.parametrize(
    ("gold", "rounded"), [(r"\pi", "3.141593"), (r"3\sqrt{13}", "10.816654"), ("x/3", "0.333333x")]
)
def test_exactly_equal_is_more_than_equal_to_six_decimals(gold: str, rounded: str) -> None:
    expressions = read_expressions(gold)
    assert expressions is not None
    assert equivalent(expressions, gold, exact=True) and not equivalent(expressions, rounded, exact=True)


def test_a_shared_budget_is_spent() -> None:
    gold, work = read_expressions("x^2+2x+1"), symbolic.Work(symbolic.MAX_CALLS)
    assert gold is not None and equivalent(gold, "(x+1)^2", work) and 0 < work.calls < symbolic.MAX_CALLS
    assert not equivalent(gold, "(x+1)^2", symbolic.Work(100)) and not equivalent(gold, "(x+1)^2", symbolic.Work(0))


def test_the_warning_about_timeouts_is_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    read_expressions("1")
    with caplog.at_level(logging.WARNING):
        logging.getLogger("math_verify.grader").warning("Timeout is disabled as timeout_seconds is None")
        logging.getLogger("math_verify.grader").warning("something else")
    assert [record.getMessage() for record in caplog.records] == ["something else"]
