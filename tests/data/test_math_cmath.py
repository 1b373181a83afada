"""MATH and CMATH as prompts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from grpo_ext.data.cmath import cmath
from grpo_ext.data.math import math
from grpo_ext.data.sources import DATA_FOLDER_VARIABLE
from grpo_ext.rewards import ANSWER_FORMATS, correct_math_strict, format_reward

Loader = Callable[..., datasets.Dataset]
MATH_ROW = {"problem": " 1+1? ", "solution": "2.", "answer": r"\frac{4}{2}", "subject": "Algebra", "level": 1}
CMATH_ROW = {"grade": 2, "input": "一加一？", "golden": "2", "reasoning_step": 1}
LOADERS = [
    (math, "math500_dev.jsonl", MATH_ROW, "test"),
    (math, "math_train.jsonl", MATH_ROW, "train"),
    (cmath, "cmath_dev.jsonl", CMATH_ROW, "validation"),
]


@pytest.mark.parametrize(("loader", "rows"), [(math, 250), (cmath, 300)])
@pytest.mark.parametrize("name", ANSWER_FORMATS)
def test_the_whole_file(loader: Loader, rows: int, name: str, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DATA_FOLDER_VARIABLE, str(data_dir))
    data = loader(answer_format=name)
    assert len(data) == rows
    columns: dict[str, Any] = {"answer": data["answer"][:], "answer_format": data["answer_format"][:]}
    assert correct_math_strict(data["solution"][:], **columns) == [1.0] * rows
    assert format_reward(data["solution"][:], columns["answer_format"]) == [1.0] * rows
    assert all(ANSWER_FORMATS[name].instruction in prompt[0]["content"] for prompt in data["prompt"][:])


@pytest.mark.parametrize(("loader", "file", "row", "split"), LOADERS)
def test_one_row(
    loader: Loader, file: str, row: dict[str, Any], split: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DATA_FOLDER_VARIABLE, str(tmp_path))
    (tmp_path / file).write_text(json.dumps(row), encoding="utf-8")
    question = row.get("problem", row.get("input"))
    asked = f"{question.strip()}\n\n{ANSWER_FORMATS['tags'].instruction}"
    loaded = loader(split, "tags", system_prompt="Be brief.")[0]
    assert loaded["prompt"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": asked}]
    assert (loaded["question"], loaded["answer_format"]) == (question, "tags")
    plain = loader(split, "tags", system_prompt="Be brief.", conversational=False)[0]
    assert plain["prompt"] == f"Be brief.\n\n{asked}\n"
    if loader is math:
        assert loaded["answer"] == r"\frac{4}{2}" and loaded["solution"] == "2.\n<answer>\\frac{4}{2}</answer>"
        assert (loaded["subject"], loaded["level"]) == ("Algebra", 1)
    else:
        assert loaded["answer"] == "2" and loaded["solution"] == "<answer>2</answer>"
        assert (loaded["grade"], loaded["reasoning_step"]) == (2, 1)


@pytest.mark.parametrize(("loader", "file", "row", "split"), LOADERS)
def test_draws_and_refusals(
    loader: Loader, file: str, row: dict[str, Any], split: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DATA_FOLDER_VARIABLE, str(tmp_path))
    gold = "answer" if loader is math else "golden"
    (tmp_path / file).write_text("\n".join(json.dumps({**row, gold: str(i)}) for i in range(30)), encoding="utf-8")
    draw = loader(split, size=20, seed=3)["answer"][:]
    assert len(set(draw)) == 20 and draw != sorted(draw, key=int)
    assert (
        loader(split, size=8, seed=3)["answer"][:] == draw[:8] and loader(split, size=20, seed=4)["answer"][:] != draw
    )
    with pytest.raises(ValueError, match=r"size is 31; .* 1 to 30"):
        loader(split, size=31)
    with pytest.raises(ValueError, match=f"split is 'dev'; .* has .*{split}"):
        loader("dev")
    for bad, found in ((3, "column .* must hold text, found 3"), ("1\n2", "cannot be written in the answer format")):
        (tmp_path / file).write_text(json.dumps({**row, gold: bad}), encoding="utf-8")
        with pytest.raises(ValueError, match=rf"{split}, row 0: .*{found}"):
            loader(split, "hash")


def test_the_hub_is_asked_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DATA_FOLDER_VARIABLE, str(tmp_path))
    calls = []

    def load_dataset(*args: object, **kwargs: object) -> datasets.Dataset:
        calls.append((args, kwargs))
        return datasets.Dataset.from_list([{**MATH_ROW, **CMATH_ROW}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert (len(math("train")), len(math()), len(cmath())) == (1, 1, 1)
    assert calls == [
        (("nlile/hendrycks-MATH-benchmark", None), {"split": "train"}),
        (("HuggingFaceH4/MATH-500", None), {"split": "test"}),
        (("weitianwen/cmath", None), {"split": "validation"}),
    ]
