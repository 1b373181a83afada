"""Answers in LaTeX and Chinese: three data sets, other ways to write their answers, wrong answers."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rewritings import rewritings, wrong

from grpo_ext.rewards import ANSWER_FORMATS, correct_math, correct_math_strict
from grpo_ext.rewards.answers import read, same
from grpo_ext.rewards.maths import asks_for_percent

# Data set -> file, column of the problem, column of the answer, rows, the format its prompts ask for.
FILES = {
    "MATH": ("math500_dev.jsonl", "problem", "answer", 250, "boxed"),
    "GSM8K": ("gsm8k_test.jsonl", "question", "answer", 1319, "hash"),
    "CMATH": ("cmath_dev.jsonl", "input", "golden", 300, "chinese"),
}
Rows = list[tuple[str, str]]


@pytest.fixture(scope="module")
def problems(data_dir: Path) -> Callable[[str], Rows]:
    def load(name: str) -> Rows:
        file, problem, answer, count, _ = FILES[name]
        rows = [json.loads(line) for line in (data_dir / file).read_text(encoding="utf-8").splitlines()]
        assert len(rows) == count
        return [(row[problem], row[answer].split("####")[-1].strip()) for row in rows]

    return load


def score(
    name: str, rows: list[tuple[str, str, str]], reward: Callable[..., list[float | None]]
) -> list[float | None]:
    """Score (problem, gold, written) triples as a trainer would."""
    row_format = ANSWER_FORMATS[FILES[name][4]]
    return reward(
        completions=[f"So.\n{row_format.opening}{written}{row_format.closing}" for _, _, written in rows],
        answer=[gold for _, gold, _ in rows],
        answer_format=[row_format.name] * len(rows),
        prompts=[[{"role": "user", "content": problem}] for problem, _, _ in rows],
    )


@pytest.mark.parametrize("name", FILES)
def test_every_gold_answer_is_itself(name: str, problems: Callable[[str], Rows]) -> None:
    rows = [(problem, gold, gold) for problem, gold in problems(name)]
    for reward in (correct_math_strict, correct_math):
        assert score(name, rows, reward) == [1.0] * len(rows)


@pytest.mark.parametrize("name", FILES)
def test_other_ways_to_write_a_gold_answer(name: str, problems: Callable[[str], Rows]) -> None:
    rows = [(p, gold, text) for p, gold in problems(name) for _, text in rewritings(gold, name)]
    missed = [row[1:] for row, right in zip(rows, score(name, rows, correct_math_strict), strict=True) if right != 1.0]
    assert len(rows) > 2900 and not missed, f"{len(missed)} of {len(rows)}, among them {missed[:10]}"


@pytest.mark.parametrize(
    ("name", "every"),
    [
        ("MATH", 2),
        ("GSM8K", 8),
        ("CMATH", 1),
        pytest.param("MATH", 1, marks=pytest.mark.slow),
        pytest.param("GSM8K", 1, marks=pytest.mark.slow),
    ],
)
def test_no_wrong_answer_is_accepted(name: str, every: int, problems: Callable[[str], Rows]) -> None:
    rows = problems(name)[::every]
    tried = [
        (problem, gold, text)
        for place, (problem, gold) in enumerate(rows)
        for kind, text in wrong(gold, rows[(place + 7) % len(rows)][1])
        if not (kind == "in per cent" and asks_for_percent(problem))
    ]
    accepted = [row[1:] for row, right in zip(tried, score(name, tried, correct_math), strict=True) if right != 0.0]
    assert len(tried) > 2000 and not accepted, f"{len(accepted)} of {len(tried)}, among them {accepted[:10]}"


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        (r"\frac{1}{2}", r"\frac12"),
        ("0.5", r"50\%"),
        (r"50\%", "0.5"),
        (r"50\%", "50"),
        (r"\frac{1}{3}", r"0.\overline{3}"),
        ("1.5", r"1\frac{1}{2}"),
        (r"(2,\infty)", "x > 2"),
        ("(3,4]", r"3 < x \le 4"),
        ("(3,4]", r"x \in \left( 3, 4 \right]"),
        (r"(-\infty,2]\cup[5,\infty)", r"[5,\infty) \cup (-\infty,2]"),
        ("1,-2", r"\{-2, 1\}"),
        ("1,-2", r"x = -2 \text{ or } x = 1"),
        (r"1 \pm \sqrt{19}", r"1-\sqrt{19}, 1+\sqrt{19}"),
        ("5x - 7y + 11z + 4 = 0", "-5x + 7y = 11z + 4"),
        (r"\cot x", r"\frac{1}{\tan x}"),
        (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}"),
        (r"\frac{3\sqrt{3}}{4}", "3√3/4"),
        ("52_8", r"52_{\text{eight}}"),
        (".0000672", r"6.72 \times 10^{-5}"),
        (r"\$32,\!348", "32,348 dollars"),
        (r"90^\circ", "90 degrees"),
        (r"18\text{ cm}^2", "18 square centimeters"),
        (r"\text{(A)}", r"$\textbf{(a)}$"),
        (r"\text{Evelyn}", "evelyn"),
        ("x=5", "5"),
        (r"\text{10 meters}", "10"),
        ("100, 200", "200,100"),
        ("100, 200", "100,200"),
        (r"\begin{pmatrix} 1/2 \\ 3 \end{pmatrix}", r"\begin{bmatrix}\frac12\\3\end{bmatrix}"),
        ("2/5", "五分之二"),
        ("0.2", "百分之二十"),
        ("305", "三百零五"),
        ("30000", "3万元"),
        ("15000", "1.5万"),
        ("12000", "1万2千"),
        ("12000", "1万2000元"),
        ("350000000", "3亿5000万"),
        ("350002000", "3亿5000万2000"),
        ("20000000", "2千万"),
        ("-3", "负3"),
        ("-23", "答案是负二十三"),
        ("-2/5", "负五分之二"),
        ("-30000", "负3万"),
        ("3", "负责的有3人"),
        ("18", "18¥"),
        ("68", "第二次拍了68下"),
        ("1/2", "一半"),
        ("7/3", "2又3分之1"),
        ("18", "１８千米"),
        ("9", "9 quarters"),
        ("120", "120 fifth graders"),
    ],
)
def test_the_same_answer(gold: str, answer: str) -> None:
    assert same(gold, answer)


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("(3,4]", "[3,4)"),
        ("(3,4]", "3 < x < 4"),
        ("(1,2)", r"\{1,2\}"),
        ("(1,2)", "1, 2"),
        ("(1,2)", "[1,2]"),
        ("8", "7 or 8"),
        ("8", r"8_{9}"),
        ("52_8", "42"),
        ("0.5", "0.5%"),
        ("50", "5%"),
        (r"\pi", "3.141593"),
        (r"3\sqrt{13}", "10.816654"),
        (r"\frac13", "0.333333333"),
        ("x^2", "X^2"),
        ("2", "2 ab"),
        ("2", "2a"),
        ("3", "3!"),
        ("x=5", "y=5"),
        ("x=1, y=2", "2, 1"),
        ("x=1, y=2", "x=2, y=1"),
        ("18 m", "18 cm"),
        (r"90^\circ", "90 cm"),
        ("5x - 7y + 11z + 4 = 0", "5x - 7y + 11z + 4"),
        ("5", "5x = 25"),
        (r"\text{(A)}", "(B)"),
        (r"\text{even}", r"\text{not even}"),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 1 & 2 \end{pmatrix}"),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 2 \\ 1 \end{pmatrix}"),
        ("1,-2", "1,-2,1"),
        ("12", "1 2"),
        ("1200", "1, 200"),
        ("100, 200", "100200"),
        ("18", "8或18"),
        ("18", "不是18"),
        ("3", "3元5角"),
        ("3", "3个半"),
        ("3", "三十"),
        ("2/5", "二分之五"),
        ("-3", "三"),
        ("100002000", "1万2000"),
        ("20000", "2万3"),
        ("20003", "2万3"),
        ("300005000", "3亿5000"),
        ("2001000", "1千2百万"),
        ("-3", "负责的有3人"),
        ("3", "负的3"),
        ("5", "5 thousands"),
        ("2", "2 millions"),
        ("3", r"3 \text{ dozens}"),
        ("5", "5 thirds"),
        ("18", ""),
    ],
)
def test_not_the_same_answer(gold: str, answer: str) -> None:
    assert not same(gold, answer)


def test_per_cent_is_a_unit_where_the_problem_asks_for_it() -> None:
    asked, told = "What percent of 50 is 10?", "He paid 20% of 100 dollars. How many dollars did he pay?"
    assert asks_for_percent(asked) and asks_for_percent("合格率是百分之几？") and not asks_for_percent(told)
    assert correct_math(["#### 20%"] * 2, answer=["20"] * 2, prompts=[asked, told]) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("completion", "strict", "lenient"),
    [
        (r"\boxed{5} no, \boxed{\frac{1}{2}}", 1.0, 1.0),
        (r"$\boxed{ \left\{ x \right\} }$ and \boxed{0.5}.", 1.0, 1.0),
        ("#### 1/2", 0.0, 1.0),
        ("The answer is 0.5.", 0.0, 1.0),
        (r"**Answer:** $\frac12$", 0.0, 1.0),
        ("The answer is 0.5 or 3.", 0.0, 0.0),
        ("答案是二分之一。", 0.0, 1.0),
        ("答：一半", 0.0, 1.0),
        ("so we get 0.5", 0.0, 1.0),
        ("#### Final answer\nIt is 0.5.", 0.0, 1.0),  # a heading
        ("#### Final answer\nThe answer is clear.\nIt is 0.5.", 0.0, 1.0),
        (r"\boxed{\text{no solution}}, not 0.5", 0.0, 0.0),
        ("答案是一半，不是 3", 0.0, 0.0),
        (r"\boxed{7}, not 0.5", 0.0, 0.0),
        (r"\boxed{", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_where_the_answer_is_read(completion: str, strict: float, lenient: float) -> None:
    columns = {"answer": [r"\frac{1}{2}"], "answer_format": ["boxed"]}
    assert correct_math_strict([completion], **columns) == [strict]
    assert correct_math([completion], **columns) == [lenient]


def test_a_missing_gold_answer_cannot_be_scored() -> None:
    assert correct_math(["1"] * 5, answer=[None, "", "{}", "$$", "1"]) == [None] * 4 + [1.0]
    with pytest.raises(ValueError, match=r"'correct_math'.*column 'answer'"):
        correct_math(["1"])


GOLDS = [r"\cot x", "1, 2, 3", r"\frac{1}{2}", "(1,2)", r"1\pm\sqrt{19}", "x^2+2x+1", "18"]
TOKENS = st.sampled_from(
    r"1 2 99 x \pi i \frac { } ( ) [ ] ^ _ + - / , = < \le \sqrt \sin \cup \left( \right) \\ & \{ \} and or \pm "
    r"\infty 0.5 10^{20} \text{ cm} % \% ° 三 十 分之 万 或 一半 \begin{pmatrix} \end{pmatrix} $ \, \!".split()
)


@given(st.lists(TOKENS, max_size=25).map("".join), st.sampled_from(GOLDS))
@settings(max_examples=80)
def test_any_answer_is_survived(text: str, gold: str) -> None:
    assert same(gold, text) in (True, False)
    assert same(gold, gold)


@given(st.text(max_size=60))
def test_any_text_is_read_and_is_itself(text: str) -> None:
    read(text)
    assert same(text, text) == bool(text.strip())


@given(st.fractions(max_denominator=500), st.fractions(max_denominator=500))
def test_fractions_are_compared_exactly(a: object, b: object) -> None:
    def frac(value: object) -> str:
        over, _, under = str(value).partition("/")
        return rf"{'-' if over[0] == '-' else ''}\dfrac{{{over.lstrip('-')}}}{{{under or 1}}}"

    assert same(str(a), frac(a))
    assert same(str(a), frac(b)) == (a == b)
