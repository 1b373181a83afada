"""The language of a text, and whether a completion stays in it."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_ext.rewards import language_consistency
from grpo_ext.rewards.language import consistency, language_of

GERMAN = "Dann addieren wir die beiden Zahlen und das ist nicht die Summe der Äpfel."


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("How many apples does she have in total?", "en"),
        ("Wie viele Äpfel hat sie insgesamt und wie viele sind es nicht?", "de"),
        ("Combien de pommes a-t-elle dans le panier ?", "fr"),
        ("¿Cuántos días hay en una semana y en un mes?", "es"),
        ("Quante mele ci sono nel cesto della nonna?", "it"),
        ("Quantos dias são em uma semana?", "pt"),
        ("Hoeveel appels zijn er en hoeveel wordt het?", "nl"),
        ("小明有三个苹果，又买了两个，他一共有几个？", "zh"),
        ("りんごはいくつありますか", "ja"),
        ("太郎はりんごを三個買いました", "ja"),
        ("Сколько яблок у Маши?", "CYRILLIC"),
        ("사과는 몇 개 있습니까?", "HANGUL"),
        ("كم عدد التفاح", "ARABIC"),
        ("Berlin", "LATIN"),
        ("la que", "LATIN"),  # French as well as Spanish
        (r"$x^2$ \frac{1}{2} <answer>18</answer> ```python" + "\nprint(total)\n```", None),
        ("18 + 3", None),
    ],
)
def test_the_language_of_a_text(text: str, language: str | None) -> None:
    assert language_of(text) == language
    if language is not None:
        assert consistency(text, language) == 1.0


@pytest.mark.parametrize(
    ("text", "language", "share"),
    [
        ("他有三个 apples", "zh", 4 / 5),
        ("Она имеет three apples", "CYRILLIC", 2 / 4),
        ("She has 三个 apples", "en", 3 / 5),
        ("りんごが三個あります", "zh", 0.0),
        ("小明有三个苹果又买了两个他一共有几个", "ja", 0.0),
        (GERMAN, "en", 2 / 14),  # the last two words are too few to judge
        ("She has the two and it is right. " + GERMAN, "en", (8 + 2) / 22),
        ("18 + 3 = 21", "en", 1.0),
        ("", "zh", 1.0),
        ("`print(x)` is the call", "en", 1.0),
        ("The answer is $x$, in \\text{cm}.", "en", 1.0),
    ],
)
def test_the_share(text: str, language: str, share: float) -> None:
    assert consistency(text, language) == pytest.approx(share, abs=1e-12)


def test_real_answers_are_in_their_language(data_dir: Path) -> None:
    def rows(file: str) -> list[dict[str, str]]:
        return [json.loads(line) for line in (data_dir / file).read_text(encoding="utf-8").splitlines()]

    grade_school = rows("gsm8k_test.jsonl")
    prompts = [
        [{"role": "system", "content": "请用中文"}, {"role": "user", "content": x["question"]}] for x in grade_school
    ]
    scores = language_consistency([x["answer"] for x in grade_school], prompts=prompts)
    assert scores == [1.0] * 1319
    chinese = rows("cmath_dev.jsonl")
    assert language_consistency([x["input"] for x in chinese], [x["input"] for x in chinese]) == pytest.approx(
        [1.0] * 300, abs=0.15
    )
    switched = language_consistency([x["answer"] for x in grade_school[:300]], [x["input"] for x in chinese])
    assert max(score for score in switched if score is not None) == 0.0


def test_the_reward() -> None:
    completions = [[{"role": "assistant", "content": "She has 18 of them."}]] * 3
    prompts = ["How many apples does she have?", "她有几个？", "3 + 4"]
    assert language_consistency(completions, prompts=prompts) == [1.0, 0.0, None]
    assert language_consistency(completions, prompts=prompts, language=["zh", "en", "LATIN"]) == [0.0, 1.0, 1.0]
    assert language_consistency(completions, language=["en", None, "en"]) == [1.0, None, 1.0]
    with pytest.raises(ValueError, match="needs prompts, or a dataset column 'language'"):
        language_consistency(completions)
    with pytest.raises(ValueError, match="prompts given to reward 'language_consistency' must be a list of 3"):
        language_consistency(completions, prompts=["a"])


@pytest.mark.parametrize(
    ("name", "words"),
    [("EN", "write 'en'"), ("english", "use one of zh, ja, en, "), ("LAT", "CYRILLIC"), (3, "zh"), ("", "zh")],
)
def test_a_column_that_names_no_language(name: Any, words: str) -> None:
    with pytest.raises(
        ValueError, match=f"column 'language' has {name!r} in row 1, which names no language; .*{words}"
    ):
        language_consistency(["a", "b"], language=["en", name])


def test_every_language_that_is_told_apart_can_be_asked_for() -> None:
    names = ["zh", "ja", "de", "LATIN", "CJK", "HANGUL", "CYRILLIC", "DEVANAGARI"]
    assert language_consistency(["18"] * 8, language=names) == [1.0] * 8


HOSTILE = ["\\[" * 1_000_000, "`" * 1_000_000, "a " * 1_000_000, "\\begin{" * 100_000, "<a" * 100_000, "字a" * 500_000]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_takes_less_than_a_second(text: str) -> None:
    # A busy machine takes longer: the best of three tries
    seconds = []
    for _ in range(3):
        start = time.process_time()
        assert all(0 <= consistency(text, language) <= 1 for language in ("en", "zh"))
        seconds.append(time.process_time() - start)
    assert min(seconds) < 1


@given(st.text(), st.sampled_from(["en", "zh", "ja", "GREEK", "LATIN"]))
def test_any_text_has_a_share(text: str, language: str) -> None:
    assert 0 <= consistency(text, language) <= 1
