"""A run's folder is read as far as it can be, and what is missing is said."""

import json
import math
from pathlib import Path

import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_runs import group, lines, make_run, metrics, summary

from grpo_ext.report import read_metrics, read_run
from grpo_ext.report.reading import by_step, json_lines


def test_a_whole_run(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "first"))
    assert (run.name, run.notes) == ("first", [])
    assert [row["step"] for row in run.metrics] == list(range(1, 25))
    assert [(row["step"], row["group"]) for row in run.groups] == [(1, 0), (1, 1), (24, 0), (24, 1)]
    assert run.summary["after"]["accuracy"] == 0.75


def test_only_metrics(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path, groups=None, summary=None))
    assert run.summary == {} and run.groups == []
    completions, summaries = run.notes
    assert completions.startswith("There is no summary.json") or summaries.startswith("No completions")


def test_a_line_that_was_cut_off_is_left_out_and_named(tmp_path: Path) -> None:
    folder = make_run(tmp_path, steps=3)
    for name in ("metrics.jsonl", "completions.jsonl"):
        path = folder / name
        path.write_text(path.read_text()[:-9])
    (folder / "summary.json").write_text('{"before": ')
    run = read_run(folder)
    assert [row["step"] for row in run.metrics] == [1, 2]
    assert len(run.groups) == 3
    notes = " ".join(run.notes)
    assert "metrics.jsonl: line 3 is no JSON object" in notes
    assert "completions.jsonl: line 4 is" in notes and "summary.json is no JSON object" in notes


def test_several_torn_lines_are_counted(tmp_path: Path) -> None:
    folder = make_run(tmp_path, steps=2)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step"\n[1]\n\nnull\n')
    assert "3 lines (the first is line 3) are no JSON object" in " ".join(read_run(folder).notes)


def test_after_a_resume_the_later_row_counts(tmp_path: Path) -> None:
    rows = [*metrics(4), {**metrics(4)[2], "reward": 0.99}, {"step": 3, "eval_reward": 0.5}]
    later = {**group(1, 0), "prompt": "again"}
    run = read_run(make_run(tmp_path, metrics=rows, groups=[group(1, 0), group(1, 1), later]))
    assert [row["step"] for row in run.metrics] == [1, 2, 3, 4]
    assert (run.metrics[2]["reward"], run.metrics[2]["eval_reward"], run.metrics[2]["kl"]) == (0.99, 0.5, 0.03)
    assert [row["prompt"] for row in run.groups] == ["again", "1 + 1 = ?"]


def test_lines_that_are_no_groups_are_left_out(tmp_path: Path) -> None:
    bad = [{}, {**group(1), "completions": []}, {**group(1), "prompt": 3}, {**group(1), "step": "x"}]
    bad.append({**group(1), "completions": [{"completion": None}]})
    assert len(read_run(make_run(tmp_path, groups=[*bad, group(2)])).groups) == 1


def test_the_log_of_a_checkpoint_where_there_is_no_other(tmp_path: Path) -> None:
    for step in (9, 10):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text(json.dumps({"log_history": metrics(step)}))
    assert len(read_run(tmp_path).metrics) == 10


def test_completions_that_trl_wrote_itself(tmp_path: Path) -> None:
    run = make_run(tmp_path, groups=None)
    (run / "completions").mkdir()
    messages = [[{"role": "user", "content": text}] for text in ("a?", "a?", "b?", "b?")]
    table = {
        "step": [7] * 4,
        "prompt": messages,
        "completion": ["x", "y", "z", "w"],
        "correct": [0.0, 1.0, float("nan"), 0.5],
        "source": ["s"] * 4,
        "advantage": [-1.0, 1.0, 0.0, 0.0],
    }
    pandas.DataFrame(table).to_parquet(run / "completions" / "completions_00007.parquet")
    (run / "completions" / "completions_00008.parquet").write_bytes(b"PAR1 torn")
    found = read_run(run)
    assert [(row["step"], row["prompt"]) for row in found.groups] == [(7, "a?"), (7, "b?")]
    assert [row["completion"] for row in found.groups[0]["completions"]] == ["y", "x"]
    assert found.groups[1]["completions"][1]["reward"] is None
    assert found.groups[0]["completions"][0]["rewards"] == {"correct": 1.0}
    assert "completions_00008.parquet cannot be read" in " ".join(found.notes)


@pytest.mark.parametrize("content", ["", "not JSON\n", '{"step": 1, "train_runtime": 3.0}\n'])
def test_a_folder_without_a_grpo_log_is_refused_in_one_sentence(tmp_path: Path, content: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(content)
    with pytest.raises(ValueError, match=r"holds no log of a GRPO run.*at least one step\.$"):
        read_run(tmp_path)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is no folder; give the output folder of a run"):
        read_run(tmp_path / "none")


def test_values_that_cannot_be_drawn_are_dropped() -> None:
    rows = by_step([{"step": 1, "a": math.nan, "b": math.inf, "c": "x", "d": True, "e": None, "f": 2}, {"a": 1}])
    assert rows == [{"step": 1, "f": 2}]


def test_read_metrics_gives_training_steps_alone(tmp_path: Path) -> None:
    lines(tmp_path / "metrics.jsonl", [*metrics(2), {"step": 2, "train_loss": 0.1}, {"step": 3, "eval_reward": 0.1}])
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]
    assert read_metrics(tmp_path / "none") == []


@given(st.binary(max_size=200))
def test_any_bytes_are_read(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "metrics.jsonl"
    path.write_bytes(content)
    rows, torn = json_lines(path)
    assert all(isinstance(row, dict) for row in rows) and torn == sorted(torn)


def test_a_number_with_thousands_of_digits(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": ' + "9" * 5000 + '}\n{"step": 1}\n' + "[" * 100_000 + "\n")
    assert json_lines(path) == ([{"step": 1}], [1, 3])


def test_summary_of_the_helper_is_what_a_recipe_writes() -> None:
    assert {"before", "after", "command", "recipe", "config", "versions", "hardware"} <= set(summary())
