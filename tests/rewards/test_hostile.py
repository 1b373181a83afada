"""Every reward on long texts that a regular expression could stumble over: none takes a second."""

import functools
import signal
import time
from collections.abc import Callable, Iterator

import pytest
from sympy.core.cache import clear_cache

from grpo_ext.rewards import REWARDS, correct_math
from grpo_ext.rewards.calculations import check_calculations
from grpo_ext.rewards.code import extract_program
from grpo_ext.rewards.formats import ANSWER_FORMATS, BOXED
from grpo_ext.rewards.maths import asks_for_percent
from grpo_ext.rewards.votes import VOTES

# What is repeated: an answer is read up to a thousand characters, a text without a limit
SHORT = [
    *("a", "ab ", "a-", "Ab'", "1,", "1.", "1 ", "1/", "-1", "x=", "<x", "{", "}", "(1,2)", "[", "^", "_", "%", "$"),
    *(r"\frac", r"\frac1", r"\text{", r"\text{ cm}", r"\sqrt", r"\overline{3}", r"\,", r"\\", "and ", "cm ", "5 cm"),
    *("°", "一", "千", "万", "1万", "分之", "又", "点", "百分之", "负", "答案", "\u3000"),
]
LONG = [
    *("#### ", "####", "**", "答 ", "答应", "答案*", "answer ", "answer* ", "answer is*", "<answer>", r"\boxed{", "{"),
    *("```\n", ". ", " ", "\n", "a", "1", "\\"),
]
# Between its beginning and its end, none of which fits
AROUND = ["{}", "5{}=", "#### 5{}=", r"\boxed{{5 {}=}}", "答案是5{}=。", "The answer is 5{}=."]


def takes_less_than_a_second(work: Callable[[], object]) -> bool:
    """CPU time of one of three tries, each with sympy's cache empty, because a busy machine slows down any of them."""
    for _ in range(3):
        clear_cache()
        start = time.process_time()
        # What grows exponentially would not come to an end
        signal.setitimer(signal.ITIMER_VIRTUAL, 10)
        try:
            work()
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        if time.process_time() - start < 1:
            return True
    return False


def read_by_all(texts: list[str], gold: str) -> None:
    for name, reward in REWARDS.items():
        if name != "code":  # which runs what it is given
            reward(texts, prompts=texts, answer=[gold] * len(texts), answer_format=BOXED.name)
    for text in texts:
        for row_format in ANSWER_FORMATS.values():
            row_format.extract(text)
        for vote in VOTES.values():
            vote(text, BOXED, gold)
        check_calculations(text)
        extract_program(text)
        asks_for_percent(text)


@pytest.fixture(scope="module", autouse=True)
def ready() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError("ten seconds did not suffice")

    before = signal.signal(signal.SIGVTALRM, stop)
    read_by_all(["x x"], "x^2")  # loads sympy
    yield
    signal.signal(signal.SIGVTALRM, before)


@pytest.mark.parametrize("piece", SHORT)
def test_an_answer_of_a_thousand_characters(piece: str) -> None:
    texts = [around.format(piece * (900 // len(piece))) for around in AROUND]
    for gold in ("18", "x^2"):
        assert takes_less_than_a_second(functools.partial(read_by_all, texts, gold))


@pytest.mark.parametrize("piece", LONG)
@pytest.mark.parametrize("before", ["", "答", "answer"])
def test_a_text_of_many_characters(piece: str, before: str) -> None:
    text = before + piece * (30_000 // len(piece)) + "="
    assert takes_less_than_a_second(functools.partial(read_by_all, [text], "18"))


# One at a time, because each costs mathematics
HOSTILE = {
    "nested braces": "{" * 500_000 + "1" + "}" * 500_000,
    "nested fractions": r"\frac{" * 150 + "1" + "}{2}" * 150,
    "shallow fractions": "+".join([r"\frac{\sqrt{7}}{13}"] * 10),
    "two megabytes": "7" * 2_000_000,
    "two answers": "the answer is 7 or 8",
    "tower": "9^{9^{9^9}}",
    "power of ten": r"10^{9999999999}",
    "long power of ten": r"1e9999",
    "list of roots": ", ".join(rf"\sqrt{{{n}}}" for n in range(101, 140)),
    "list of powers": ", ".join(rf"(x+{n})^{{{n}}}" for n in range(10, 40)),
    "brackets": "(" * 400 + "1,2" + ")" * 400,
    "lists in lists": "((1,2),(3,4))," * 60,
    "unions": r"(1,2)\cup" * 90,
    "matrix": r"\begin{pmatrix}" + r"1&2\\" * 200 + r"\end{pmatrix}",
    "spaces": " " * 900 + "{" + " " * 90 + "}",
    "commas": "1," * 490,
    "units": "5 " + "cm " * 300,
    "words": "and " * 240,
    "characters": "一" * 190,
    "parts": "分之" * 90,
    "signs": r"\pm" * 300,
    "texts": r"\text{ or }" * 90,
    "relations": "<x" * 400,
    "zero": r"\frac{1}{0}",
    "trigonometry": r"\sin(\cos(\tan(\sin(\cos(\tan(1))))))",
    "digits": "1." + "3" * 900,
}
GOLDS = [r"\cot x", "1, 2, 3", r"\frac{1}{2}", "(1,2)", r"1\pm\sqrt{19}", "x^2+2x+1", "18"]


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_answers_take_less_than_a_second(text: str) -> None:
    def judged(completion: str, gold: str) -> None:
        assert correct_math([completion], answer=[gold], answer_format="boxed") in ([0.0], [1.0])

    for gold in GOLDS:
        for completion in (text, rf"\boxed{{{text}}}", f"The answer is {text}."):
            assert takes_less_than_a_second(functools.partial(judged, completion, gold))
