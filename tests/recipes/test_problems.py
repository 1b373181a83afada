"""The table of problems: splits, formats, mixtures."""

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from grpo_ext.data.sets import SETS
from grpo_ext.data.sources import DATA_FOLDER_VARIABLE
from grpo_ext.evaluation.questions import Answer, questions
from grpo_ext.evaluation.scores import read_answers
from grpo_ext.plan.batch import problems_in
from grpo_ext.recipes.arguments import RecipeArguments
from grpo_ext.recipes.problems import COLUMNS, DATASETS, TRAINED_ON, load_problems, problems_named
from grpo_ext.rewards import ANSWER_FORMATS, REWARDS


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gsm8k = [{"question": f"g{row}?", "answer": f"so\n#### {row}"} for row in range(6)]
    math = [
        {"problem": f"m{row}?", "solution": "so", "answer": str(row), "subject": "a", "level": 1} for row in range(4)
    ]
    cmath = [{"grade": 1, "input": "一？", "golden": "1", "reasoning_step": 1}]
    files = {
        "gsm8k_train": gsm8k,
        "gsm8k_test": gsm8k[:2],
        "math_train": math,
        "math500_dev": math[:1],
        "cmath_dev": cmath,
    }
    for name, rows in files.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.setenv(DATA_FOLDER_VARIABLE, str(tmp_path))


@pytest.mark.parametrize("name", DATASETS)
def test_each_row_of_the_table(name: str, data: None) -> None:
    row = DATASETS[name]
    assert all(SETS[part].split == (DATASETS[part].test) for part in row.parts or (name,))
    assert row.answer_format in ANSWER_FORMATS and row.reward in REWARDS and set(row.measures) <= set(REWARDS)
    args = RecipeArguments(dataset=name if name in TRAINED_ON else "gsm8k")
    for split in ("train", "test") if name in TRAINED_ON else ("test",):
        rows = load_problems(args, split, 1, 0, name)
        assert len(rows) == 1 and set(COLUMNS) <= set(rows.column_names)
        assert rows[0]["answer_format"] == row.answer_format
        assert REWARDS[row.reward]([rows[0]["solution"]], **rows[:1]) == [1.0]


def test_a_mixture_has_all_rows_in_one_order(data: None) -> None:
    args = RecipeArguments(dataset="gsm8k+math")
    whole = load_problems(args, "train", None, seed=3)
    assert sorted(whole["question"]) == [
        f"{kind}{row}?" for kind, count in (("g", 6), ("m", 4)) for row in range(count)
    ]
    assert set(whole["answer_format"]) == {"boxed"} and whole.column_names == COLUMNS
    assert load_problems(args, "train", 4, seed=3)["question"] == whole["question"][:4]
    assert load_problems(args, "train", None, seed=4)["question"] != whole["question"]
    with pytest.raises(ValueError, match=r"gsm8k\+math has from 1 to 10 problems"):
        load_problems(args, "train", 11, seed=0)


def test_the_named_format_holds_for_what_is_trained_on_and_not_out_of_domain(data: None) -> None:
    args = RecipeArguments(dataset="gsm8k+math", answer_format="tags", eval_datasets=["gsm8k", "math", "cmath"])
    found = {name: load_problems(args, "test", 1, 0, name)[0]["answer_format"] for name in args.eval_datasets}
    assert found == {"gsm8k": "tags", "math": "tags", "cmath": "chinese"}


def test_files_of_the_users(data: None, tmp_path: Path) -> None:
    train, test = str(tmp_path / "train.jsonl"), str(tmp_path / "test.jsonl")
    Path(train).write_text('{"input": "1+1?", "target": 2.0}\n{"input": "2+2?", "target": 4.0}\n')
    Path(test).write_text('{"question": "3+3?", "answer": "6", "solution": "so\\n#### 6"}\n')
    args = RecipeArguments(dataset=train, answer_format="hash", eval_datasets=[test, "cmath"])
    rows = load_problems(args, "train", None, 0)
    assert rows["answer"] == ["2", "4"] and rows["solution"] == ["#### 2", "#### 4"] and rows.column_names == [
        "prompt", "answer", "question", "solution", "answer_format"
    ]  # fmt: skip
    (held_out,) = load_problems(args, "test", None, 0, test)
    assert held_out["solution"] == "so\n#### 6" and held_out["answer_format"] == "hash"
    row = problems_named("dataset", train)
    assert args.reward_funcs == [row.reward] and row.measures[0] == row.reward
    assert REWARDS[row.reward]([held_out["solution"]], answer=["6"], answer_format=["hash"]) == [1.0]
    assert problems_in(train) == 2
    # The warm-up speaks the format that is trained
    args = RecipeArguments(dataset=train, eval_datasets=[test], sft_dataset="gsm8k")
    assert load_problems(args, "train", 1, 0, args.sft_dataset)[0]["answer_format"] == row.answer_format != "hash"


TESTED = [
    {"question": "Print twice the number.", "tests": [{"input": "3", "output": "6"}], "level": {"of": 1}},
    {"question": "Print the number.", "tests": [{"input": "3", "output": "3"}], "solution": "print(input())"},
]


def test_programs_are_judged_by_their_tests(tmp_path: Path) -> None:
    file = tmp_path / "programs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in TESTED))
    args = RecipeArguments(dataset=str(file), eval_datasets=[str(file)])
    row = problems_named("dataset", str(file))
    assert args.reward_funcs == ["code"] == [row.reward] and row.measures == ("code", "code")
    rows = load_problems(args, "train", None, 0)
    # No answer, so no format is asked for; other columns stay, also those that the first row lacks
    assert rows["prompt"] == [[{"role": "user", "content": made["question"]}] for made in TESTED]
    assert rows["tests"] == [made["tests"] for made in TESTED] and rows["solution"] == ["", "print(input())"]
    assert rows["level"] == [{"of": 1}, None]
    programs = ["```python\nprint(2 * int(input()))\n```", "print(2)"]
    assert REWARDS["code"](programs, **rows[:]) == [1.0, 0.0]
    asked = questions(list(rows), greedy=True, samples=2)
    answers = [Answer(programs[question.problem], 9, True) for question in asked]
    found = read_answers(asked, answers, list(rows), "code")
    assert [found.right[problem, sample] for problem in (0, 1) for sample in (None, 0)] == [1.0, 1.0, 0.0, 0.0]
    assert found.votes[0, 0] == "right" and found.votes[1, 0] == "print(2)"


def test_columns_of_a_file_stay_or_are_named(tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"

    def load(*rows: dict[str, Any]) -> Dataset:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return load_problems(RecipeArguments(dataset=str(file), eval_datasets=["gsm8k"]), "train", None, 0)

    rows = load({"problem": "1+1?", "target": 2, "source": "a"}, {"problem": "2?", "target": 2, "language": "de"})
    assert rows.column_names == [*COLUMNS, "source", "language"] and rows["language"] == [None, "de"]
    for bad, message in (
        (
            {"tests": ["assert True"]},
            r"own.jsonl mixes types .* line 2, column 'tests\[\]', holds a str, and before st",
        ),
        ({"tests": None}, r"row 1: columns 'question' and 'tests' must both hold something"),
    ):
        with pytest.raises(ValueError, match=message):
            load(TESTED[0], {"question": "?", **bad})
    with pytest.raises(
        ValueError, match=r"row 1: columns 'question' and 'answer' or 'tests' must both hold something"
    ):
        load({**TESTED[0], "answer": "6"}, {"question": "?", "answer": ""})


def test_refusals(tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_text('{"question": "1+1?", "answer": 2}\n')
    with pytest.raises(ValueError, match=r"`eval_datasets` is unset, and the file '.*own\.jsonl' has no"):
        RecipeArguments(dataset=str(tmp_path / "own.jsonl"))
    with pytest.raises(FileNotFoundError, match=r"`dataset` names the file 'none\.jsonl', which does not exist"):
        RecipeArguments(dataset="none.jsonl")
    with pytest.raises(ValueError, match="`dataset` is 'cmath'; it must be one of: gsm8k, arithmetic, math"):
        RecipeArguments(dataset="cmath")
    with pytest.raises(ValueError, match="`eval_datasets` is 'mnist'"):
        RecipeArguments(eval_datasets=["gsm8k", "mnist"])
    with pytest.raises(ValueError, match="`sft_dataset` is 'cmath'"):
        RecipeArguments(sft_dataset="cmath")
    with pytest.raises(ValueError, match="`dataset` 'cmath' has no train split"):
        load_problems(RecipeArguments(), "train", 1, 0, "cmath")
    with pytest.raises(ValueError, match="`system_prompt` is not part of the built-in problems"):
        load_problems(RecipeArguments(dataset="arithmetic", system_prompt="Think."), "train", 1, 0)
