"""What is asked and how it is read: every task's own solutions are right, a user's file, votes, stored samples."""

import json
import re
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from grpo_ext.data.arithmetic import arithmetic
from grpo_ext.data.jsonl import jsonl
from grpo_ext.evaluation.questions import Answer, Question, batches, key_of, questions
from grpo_ext.evaluation.scores import compare, default_ks, measure, read_answers, summarise
from grpo_ext.evaluation.store import SampleStore
from grpo_ext.evaluation.tables import differences_table, notes, results_table, verdicts
from grpo_ext.evaluation.tasks import TASKS, task_named
from grpo_ext.rewards import REWARDS
from grpo_ext.rewards.formats import answer_format_named
from grpo_ext.rewards.votes import VOTES


@pytest.mark.parametrize("name", TASKS)
def test_a_tasks_own_solutions_are_right(name: str, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRPO_EXT_DATA", str(data_dir))
    task = TASKS[name]
    rows = list(task.load(task.split, task.answer_format, None, True, 20, 1))
    asked = questions(rows, greedy=False, samples=1)
    for reader, reward in task.readers.items():
        right = read_answers(asked, [Answer(row["solution"], 1, True) for row in rows], rows, reward)
        assert all(score == 1.0 for score in right.right.values()), (reader, right.right)
        wrong = read_answers(asked, [Answer("I do not know.", 1, True)] * 20, rows, reward)
        assert not any(wrong.right.values()) and not any(wrong.votes.values())
    # The strict reader wants the format that the prompt names, the lenient one does not
    bare = [Answer(f"So it must be \\boxed{{{row['answer']}}}", 1, True) for row in rows]
    if task.answer_format != "boxed":
        assert not any(read_answers(asked, bare, rows, task.strict).right.values())
    assert all(read_answers(asked, bare, rows, task.lenient).right.values())


@pytest.mark.parametrize(
    ("reward", "same", "others"),
    [
        ("correct_strict", ["#### 1,200", "so\n#### 1200.0", "#### $1200"], ["#### 1201", "#### 1200 or 3"]),
        ("correct", ["it is 1/2", "0.5", "\\boxed{0.50}"], ["it is 1/3", "2"]),
        ("correct_math_strict", ["#### \\frac{1}{2}", "#### 0.5", "#### 1/2"], ["#### 2", "#### x"]),
        ("correct_math", ["\\boxed{(1, 0.5)}", "\\boxed{\\left(1, \\frac12\\right)}"], ["\\boxed{(0.5, 1)}", "(1)"]),
    ],
)
def test_equal_answers_are_one_vote(reward: str, same: list[str], others: list[str]) -> None:
    row_format = answer_format_named("hash")
    votes = {VOTES[reward](text, row_format, "7") for text in same}
    assert len(votes) == 1 and None not in votes
    assert not votes & {VOTES[reward](text, row_format, "7") for text in others}
    assert VOTES[reward]("no answer here", row_format, "7") is None


def test_figures_by_hand() -> None:
    rows = [{"prompt": f"p{i}", "answer": gold, "answer_format": "hash"} for i, gold in enumerate(["5", "6", "none"])]
    asked = questions(rows, greedy=True, samples=4)
    said = {0: ["5", "5", "6", "7", "7"], 1: ["5", "6", "6.0", "5", "5"], 2: ["5"] * 5}
    answers = [
        Answer(f"#### {said[one.problem][0 if one.sample is None else one.sample + 1]}", 2, True) for one in asked
    ]
    reading = read_answers(asked, answers, rows, "correct_strict")
    found = measure(reading, 3, 4, [1, 2, 4])
    assert {name: values.tolist() for name, values in found.items()} == {
        "greedy pass@1": [1.0, 0.0],
        "pass@1": [0.25, 0.5],
        "pass@2": [0.5, pytest.approx(1 - 1 / 6)],
        "pass@4": [1.0, 1.0],
        # 5 6 7 7: the sevens win. 6 6 5 5: a tie
        "maj@4": [0.0, 0.5],
    }
    result = summarise("a model", asked, answers, {"strict": reading}, [1, 4])
    assert result.about["unreadable_gold"] == 1 and result.about["samples"] == 4
    assert result.intervals["strict"]["pass@1"].value == 0.375


def test_models_are_compared_on_the_same_problems() -> None:
    rows = [{"prompt": f"p{i}", "answer": "5", "answer_format": "hash"} for i in range(40)]
    asked = questions(rows, greedy=True, samples=0)

    def result(name: str, right: int) -> Any:
        answers = [Answer("#### 5" if one.problem < right else "#### 6", 2, True) for one in asked]
        return summarise(name, asked, answers, {"strict": read_answers(asked, answers, rows, "correct_strict")}, [])

    weak, middle, strong = result("weak", 10), result("middle", 13), result("strong", 30)
    found = {(one.second, one.first): one for one in compare([weak, middle, strong])}
    assert [one.difference.value for one in found.values()] == pytest.approx([3 / 40, 20 / 40, 17 / 40])
    # 3 against 0: p = 2 / 2^3, and no correction lowers it
    assert found["middle", "weak"].difference.p == 0.25 and not found["middle", "weak"].beyond_noise
    assert found["strong", "weak"].beyond_noise and found["strong", "middle"].beyond_noise
    assert found["strong", "weak"].adjusted_p > found["strong", "weak"].difference.p
    # In words, and in a table with the models' numbers
    results = [strong, weak]
    (sentence,) = verdicts(compare(results))
    assert sentence == "strong is better than weak beyond noise: greedy pass@1 (strict, 50.0 points)."
    assert verdicts(compare([weak, middle]))[0].startswith("No difference is beyond noise")
    console = Console(width=120, record=True, file=StringIO())
    console.print(results_table(results, "a title"), differences_table(results, compare(results)))
    shown = console.export_text()
    assert re.search(r"greedy pass@1 │ 1  strong │ 75\.0% \[6[0-9]\.\d, 8[0-9]\.\d\]", shown), shown
    assert re.search(r"2 - 1 +│ -50\.0 \[-6\d\.\d, -3\d\.\d\] p < 0\.001 \*", shown), shown
    assert notes(results) == []
    weak.about |= {"truncated": 0.25, "unreadable_gold": 3}
    assert ["25% of the answers" in notes([weak])[0], "3 problems" in notes([weak])[1]] == [True, True]


def test_values_of_k() -> None:
    assert [default_ks(n) for n in (0, 1, 2, 6, 8)] == [[], [1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8]]


def test_a_batch_is_of_one_kind_and_the_key_is_the_problems() -> None:
    rows = list(arithmetic("test", 3))
    asked = questions(rows, greedy=True, samples=2)
    assert [len(part) for part in batches(asked, 2)] == [2, 1, 2, 2, 2]
    assert all(len({one.sample is None for one in part}) == 1 for part in batches(asked, 4))
    assert key_of(rows[0]) == key_of(dict(reversed(list(rows[0].items())))) != key_of(rows[1])
    uniforms = [one.uniform(0, step) for one in asked for step in range(200)]
    assert len(set(uniforms)) == len(uniforms) and 0 <= min(uniforms) < max(uniforms) < 1
    assert abs(sum(uniforms) / len(uniforms) - 0.5) < 0.03


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_file_of_the_users(tmp_path: Path) -> None:
    path = write(
        tmp_path / "own.jsonl",
        {"question": "1+1?", "answer": 2, "answer_format": None},
        {"question": "Name the set.", "answer": 5, "answer_format": "hash"},
    )
    task = task_named(path)
    rows = list(task.load(task.split, task.answer_format, "Be brief.", True, None, 0))
    assert [row["answer_format"] for row in rows] == ["boxed", "hash"] and rows[0]["answer"] == "2"
    assert rows[0]["prompt"][0] == {"role": "system", "content": "Be brief."}
    assert "\\boxed" in rows[0]["prompt"][1]["content"] and "####" in rows[1]["prompt"][1]["content"]
    scores = REWARDS[task.strict](["\\boxed{2}", "#### 5"], answer=["2", "5"], answer_format=["boxed", "hash"])
    assert scores == [1.0, 1.0]
    given = write(tmp_path / "given.jsonl", {"prompt": [{"role": "user", "content": "Hi"}], "answer": "x^2"})
    (row,) = jsonl(given)
    assert row["prompt"] == [{"role": "user", "content": "Hi"}] and row["question"] == "Hi"


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ([{"question": "1?"}], "no column 'answer'"),
        (
            [{"text": "1?", "answer": "1"}],
            "no column 'prompt' or .* or 'input'; it has text, answer",
        ),
        ([{"question": " ", "answer": "1"}], "row 0: columns 'question' and 'answer' must both hold"),
        ([{"question": "1?", "answer": "1", "answer_format": "xml"}], "answer_format is 'xml'"),
        ([], "holds no rows"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, rows: list[dict], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        jsonl(write(tmp_path / "own.jsonl", *rows))


def test_a_line_that_is_no_sample_is_named(tmp_path: Path) -> None:
    store = SampleStore(tmp_path, {})
    question = Question(0, "k", None, "p")
    store.append([question], [Answer("a", 1, True)])
    good = store.path.read_text()
    for bad in ("{}", "[]", "nonsense", good.strip().replace('"ended": true', '"ended": 1')):
        store.path.write_text(good + bad + "\n" + good)
        with pytest.raises(ValueError, match="line 3 is no sample"):
            SampleStore(tmp_path, {})
    store.path.write_text(good.split("\n", 1)[1])
    with pytest.raises(ValueError, match="does not say how its samples were made"):
        SampleStore(tmp_path, {})
