"""GSM8K as prompts, and where data sets come from."""

import json
import logging
import re
from pathlib import Path

import datasets
import pytest

from grpo_ext.data.gsm8k import gsm8k
from grpo_ext.data.sources import DATA_FOLDER_VARIABLE, find
from grpo_ext.rewards import ANSWER_FORMATS, correct_strict, format_reward

ROW = {"question": "How many?", "answer": "She has 48/2 = <<48/2=24>>24 clips.\nSo 1,000 + 24 = 1,024.\n#### 1,024"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(DATA_FOLDER_VARIABLE, str(tmp_path))
    return tmp_path


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)


def write(path: Path, *rows: object) -> None:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")


@pytest.mark.parametrize(("split", "rows"), [("train", 7473), ("test", 1319)])
def test_the_whole_split(split: str, rows: int, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DATA_FOLDER_VARIABLE, str(data_dir))
    for name in ANSWER_FORMATS:
        data = gsm8k(split, answer_format=name)
        assert data.column_names == ["prompt", "answer", "question", "solution", "answer_format"]
        assert len(data) == rows
        solutions, columns = (
            data["solution"][:],
            {"answer": data["answer"][:], "answer_format": data["answer_format"][:]},
        )
        assert all(re.fullmatch(r"-?[0-9]+", answer) for answer in columns["answer"])
        assert not any("<<" in solution or ">>" in solution for solution in solutions)
        assert correct_strict(completions=solutions, **columns) == [1.0] * rows
        assert format_reward(completions=solutions, **columns) == [1.0] * rows


@pytest.mark.parametrize(
    ("name", "last"), [("hash", "#### 1024"), ("boxed", r"\boxed{1024}"), ("tags", "<answer>1024</answer>")]
)
def test_one_row(folder: Path, name: str, last: str) -> None:
    write(folder / "gsm8k_train.jsonl", ROW)
    instruction = ANSWER_FORMATS[name].instruction
    expected = {
        "prompt": [{"role": "user", "content": f"How many?\n\n{instruction}"}],
        "answer": "1024",
        "question": "How many?",
        "solution": f"She has 48/2 = 24 clips.\nSo 1,000 + 24 = 1,024.\n{last}",
        "answer_format": name,
    }
    assert gsm8k(answer_format=name)[0] == expected
    assert gsm8k(answer_format=name, system_prompt="Be brief.")[0]["prompt"] == [
        {"role": "system", "content": "Be brief."},
        *expected["prompt"],
    ]
    plain = gsm8k(answer_format=name, conversational=False)[0]
    assert plain == {**expected, "prompt": f"How many?\n\n{instruction}\n"}
    with_system = gsm8k(answer_format=name, conversational=False, system_prompt="Be brief.")[0]
    assert with_system["prompt"] == f"Be brief.\n\nHow many?\n\n{instruction}\n"


def test_a_draw_is_fixed_by_its_seed(folder: Path) -> None:
    write(folder / "gsm8k_test.jsonl", *({"question": f"q{i}", "answer": f"#### {i}"} for i in range(50)))
    assert gsm8k("test")["answer"][:] == [str(i) for i in range(50)]
    draw = gsm8k("test", size=20, seed=3)["answer"][:]
    assert len(set(draw)) == 20 and draw != sorted(draw, key=int)
    assert gsm8k("test", size=20, seed=3)["answer"][:] == draw
    assert gsm8k("test", size=8, seed=3)["answer"][:] == draw[:8]
    assert gsm8k("test", size=20, seed=4)["answer"][:] != draw
    assert sorted(gsm8k("test", size=50)["answer"][:], key=int) == [str(i) for i in range(50)]
    for size in (0, 51, -1):
        with pytest.raises(ValueError, match=f"size is {size}; .* 1 to 50"):
            gsm8k("test", size=size)


def test_unknown_names_are_refused_with_what_would_work(folder: Path) -> None:
    with pytest.raises(ValueError, match="split is 'dev'; GSM8K has train and test"):
        gsm8k("dev")
    with pytest.raises(ValueError, match=r"'xml'.*hash, boxed, tags"):
        gsm8k(answer_format="xml")


@pytest.mark.parametrize("answer", ["She has 24.", "#### ", "#### many", "#### 7 or 8", 24, None])
def test_a_malformed_row_is_named(folder: Path, answer: object) -> None:
    good = ROW if isinstance(answer, str) else {"question": "q", "answer": answer}
    write(folder / "gsm8k_train.jsonl", good, {"question": "q", "answer": answer})
    with pytest.raises(ValueError, match=r"GSM8K train, row [01]: column.*'answer'"):
        gsm8k()


def test_the_folder_comes_first(folder: Path, no_hub: None, caplog: pytest.LogCaptureFixture) -> None:
    write(folder / "some.jsonl", {"a": 1}, "", "  ", {"a": 2})
    with caplog.at_level(logging.INFO, logger="grpo_ext"):
        assert find("some.jsonl", "org/some", columns=["a"])["a"][:] == [1, 2]
    assert str(folder / "some.jsonl") in caplog.text


def test_the_hub_comes_second(folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    calls = []

    def load_dataset(*args: object, **kwargs: object) -> datasets.Dataset:
        calls.append((args, kwargs))
        return datasets.Dataset.from_dict({"question": ["q"], "answer": ["#### 5"]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with caplog.at_level(logging.INFO, logger="grpo_ext"):
        assert gsm8k("test")["answer"][:] == ["5"]
    assert calls == [(("openai/gsm8k", "main"), {"split": "test"})]
    assert "openai/gsm8k from the hub" in caplog.text
    with pytest.raises(ValueError, match="org/x on the hub has no column 'level'; it has question, answer"):
        find("x.jsonl", "org/x", columns=["level"])


def test_one_error_when_neither_has_it(folder: Path, no_hub: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError) as error:
        gsm8k()
    for part in (
        f"no gsm8k_train.jsonl in {folder}",
        "'openai/gsm8k'",
        f"set {DATA_FOLDER_VARIABLE}",
        "reach the Hub",
    ):
        assert part in str(error.value)
    monkeypatch.delenv(DATA_FOLDER_VARIABLE)
    with pytest.raises(FileNotFoundError, match=f"{DATA_FOLDER_VARIABLE} is not set"):
        gsm8k()


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ('{"question": "q", ', "line 2 is not valid JSON"),
        ('{"question": "\udcff"}', "line 2 is not valid JSON"),
        ("[" * 100_000, "line 2 is not valid JSON"),
        ("[1]", "line 2 is not a JSON object but list"),
        ('{"question": "q"}', "line 2 has no column 'answer'; it has question"),
        ("{}", "line 2 has no column 'question'; it has none"),
    ],
)
def test_malformed_lines_are_named(folder: Path, line: str, found: str) -> None:
    path = folder / "gsm8k_train.jsonl"
    path.write_bytes((json.dumps(ROW) + "\n" + line).encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=re.escape(f"{path}, {found}")):
        gsm8k()


def test_other_malformed_files_are_named(folder: Path) -> None:
    write(folder / "empty.jsonl", "", "")
    with pytest.raises(ValueError, match=r"empty\.jsonl holds no rows"):
        find("empty.jsonl", "org/empty")
    write(folder / "mixed.jsonl", {"a": 1}, {"a": "x"})
    with pytest.raises(ValueError, match=r"mixed\.jsonl mixes types within a column"):
        find("mixed.jsonl", "org/mixed")


@pytest.mark.parametrize("name", ["", ".", "..", "../x.jsonl", "/etc/passwd", "a/b.jsonl", "a\\b", "c:x", "a\0b"])
def test_only_plain_file_names(folder: Path, name: str) -> None:
    with pytest.raises(ValueError, match="plain name of a file"):
        find(name, "org/x")
