"""Our readers against lm-evaluation-harness's gsm8k task, on the same texts.

`lm_eval_verdicts.jsonl` holds texts with the verdicts of lm_eval 0.4.13's own filter and metric classes: rewritings
of an answer, and answers of SmolLM2-135M-Instruct to the built-in problems. The functions below are that task's rules
once more, after lm_eval/tasks/gsm8k/gsm8k.yaml and `exact_match`; the file says that they are right, and they judge
GSM8K's own solutions, which are not kept here. Where our verdict is another one, one of the named cases must be the
reason.
"""

import json
import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from grpo_ext.data.gsm8k import gsm8k
from grpo_ext.rewards import REWARDS
from grpo_ext.rewards.formats import BOXED, HASH
from grpo_ext.rewards.numbers import last_number, numbers_equal, parse_number

VERDICTS = [json.loads(line) for line in Path(__file__).with_name("lm_eval_verdicts.jsonl").read_text().splitlines()]
OURS = {"strict": "correct_strict", "flexible": "correct"}


def harness_found(text: str, reader: str) -> str:
    """What the task's filter takes out of a text."""
    if reader == "strict":
        found = re.findall(r"#### (\-?[0-9\.\,]+)", text)
        return found[0].strip() if found else "[invalid]"
    pairs = re.findall(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", text)
    return (pairs[-1][0] or pairs[-1][1]).strip() if pairs else "[invalid]"


def harness_says(text: str, gold: str, reader: str) -> float:
    """Its exact match, with what it ignores."""
    sides = [harness_found(text, reader), f"Work.\n#### {gold}"]
    for ignored in (",", r"\$", r"(?s).*#### ", r"\.$"):
        sides = [re.sub(ignored, "", side) for side in sides]
    return float(sides[0].lower() == sides[1].lower())


# The reasons, as docs/how-to/evaluate.md lists them. Each takes the text and the gold answer.
STRICT_CASES: dict[str, Callable[[str, str], bool]] = {
    # `####18`, `#### $18`, `#### **18**`: the harness wants a blank and a digit
    "spelling of the line": lambda text, gold: (
        harness_found(text, "strict") == "[invalid]" and bool(HASH.extract(text))
    ),
    # `#### 18.00`: the harness compares characters
    "another way to write the number": lambda text, gold: (
        numbers_equal(parse_number(gold), parse_number(harness_found(text, "strict")))
        and not harness_says(text, gold, "strict")
    ),
    # Several lines: we read the last one, the harness the first
    "several markers": lambda text, gold: len(re.findall("####(?!#)", text)) > 1,
    # `so #### 18`, `######## 18`: for us the marker begins its line
    "marker within a line": lambda text, gold: HASH.extract(text) is None,
    # `#### 18 or 20`, `#### 18 = 3 * 6`: the harness takes the first number, for us it is no number
    "more than a number": lambda text, gold: parse_number(HASH.extract(text) or "") is None,
}
FLEXIBLE_CASES: dict[str, Callable[[str, str], bool]] = {
    # The harness reads the last number, we first look for the format and for a box
    "format before the last number": lambda text, gold: any(
        number is not None and not numbers_equal(number, parse_number(last_number(text) or ""))
        for number in (parse_number(known.extract(text) or "") for known in (HASH, BOXED))
    ),
    # `#### 18.00`: the harness compares characters
    "another way to write the number": lambda text, gold: (
        numbers_equal(parse_number(gold), parse_number(harness_found(text, "flexible")))
        and not harness_says(text, gold, "flexible")
    ),
    # `10-7`, `7...`, `18/10`: signs and dots that the harness's pattern keeps, and a fraction that it cuts
    "signs, dots and fractions": lambda text, gold: re.search(r"[0-9]-[0-9]|\.\.|[0-9]/[0-9]", text) is not None,
}
CASES = {"strict": STRICT_CASES, "flexible": FLEXIBLE_CASES}


def disagreements(rows: list[dict], reader: str, theirs: list[float]) -> tuple[int, Counter[str]]:
    """How many verdicts differ, and how often each case is the first that explains it."""
    ours = REWARDS[OURS[reader]]([row["text"] for row in rows], answer=[row["answer"] for row in rows])
    found: Counter[str] = Counter()
    for row, one, other in zip(rows, ours, theirs, strict=True):
        if one != other:
            named = (name for name, holds in CASES[reader].items() if holds(row["text"], row["answer"]))
            found[next(named, f"unexplained: {row['text'][-80:]!r}, gold {row['answer']}")] += 1
    return found.total(), found


@pytest.mark.parametrize("reader", ["strict", "flexible"])
def test_the_rules_are_those_of_the_harness(reader: str) -> None:
    for row in VERDICTS:
        assert harness_says(row["text"], row["answer"], reader) == row[reader], row["text"]
    assert 50 < sum(row[reader] for row in VERDICTS) < 200 < len(VERDICTS)


@pytest.mark.parametrize(("reader", "differing"), [("strict", 50), ("flexible", 26)])
def test_where_verdicts_differ_there_is_a_named_reason(reader: str, differing: int) -> None:
    count, found = disagreements(VERDICTS, reader, [row[reader] for row in VERDICTS])
    # Every case occurs, none is unexplained, and of most texts both say the same
    assert set(found) == set(CASES[reader]), found
    assert count == differing


@pytest.mark.parametrize("reader", ["strict", "flexible"])
def test_on_gsm8ks_own_solutions_both_agree(reader: str, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRPO_EXT_DATA", str(data_dir))
    draw, rows = random.Random(0), []
    for problem in gsm8k("test", size=300):
        work, _, last = problem["solution"].rpartition("\n")
        wrong = str(int(problem["answer"]) + draw.randint(1, 9))
        # What models really do: right, wrong, money, thousands, no format, only a sentence, cut off
        ways = [last, f"#### {wrong}", f"#### {int(problem['answer']):,}", "", f"The answer is {problem['answer']}.",
                f"So it is ${wrong}.", f"{last}."]  # fmt: skip
        rows += [{"text": f"{work}\n{way}", "answer": problem["answer"]} for way in ways]
        rows.append({"text": problem["solution"][: draw.randrange(len(problem["solution"]))], "answer": wrong})
    theirs = [harness_says(row["text"], row["answer"], reader) for row in rows]
    assert 0.3 < sum(theirs) / len(theirs) < 0.8
    count, found = disagreements(rows, reader, theirs)
    assert set(found) <= set(CASES[reader]), found
    assert count == {"strict": 0, "flexible": 9}[reader], found
