"""The comparison: one budget of tokens for all, runs that are finished are kept, and a table with its intervals."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from tiny_recipe import words as tiny_words

from grpo_ext.callbacks import forget_logs
from grpo_ext.recipes import compare
from grpo_ext.recipes.gsm8k import main as gsm8k
from grpo_ext.recipes.named_files import named_files
from grpo_ext.report.comparison import Comparison, Outcome, interval, table


def outcome(variant: str, seed: int, before: float, after: float) -> Outcome:
    return Outcome(variant, seed, before, after, 4, 10, 1000, 60.0, [500, 1000], [0.1, 0.2])


def test_interval_by_hand() -> None:
    # Standard deviation 1, so half a width is 4.303 / sqrt(3)
    assert interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 2 - 2.4843, 2 + 2.4843), abs=1e-4)
    assert interval([5.0]) == (5.0, -math.inf, math.inf)


def test_table_pairs_by_seed() -> None:
    runs = [outcome("a", seed, 0.25, after) for seed, after in ((0, 0.5), (1, 0.75), (2, 0.25))]
    # Two points better with each seed: the spread between seeds does not count against it
    runs += [outcome("b", seed, 0.25, after) for seed, after in ((2, 0.27), (0, 0.52), (1, 0.77))]
    found = Comparison("command", 1000, runs)
    header, _, first, second = table(found).splitlines()
    assert header.startswith("| variant | before | after | gain | against a |")
    assert first.split(" | ")[1:6] == ["25.0 %", "50.0 % [0.0, 100.0]", "+25.0", "", "50.0, 75.0, 25.0"]
    assert second.split(" | ")[4:6] == ["+2.0 [+2.0, +2.0]", "52.0, 77.0, 27.0"]
    assert Comparison.from_json(json.loads(json.dumps(found.as_json()))) == found


@pytest.mark.parametrize("variant", compare.VARIANTS)
def test_each_variant_is_a_command_that_the_recipe_takes(variant: str, tmp_path: Path) -> None:
    args, more = compare.parser().parse_known_args(["--output_dir", str(tmp_path), "--variants", variant])
    compare.check(args, more)
    options = compare.words(args, variant, 3, ["--lora_r", "8"])
    assert options[-2:] == ["--lora_r", "8"] and options[options.index("--seed") + 1] == "3"
    # What a preset says is not said again by the base
    row = compare.VARIANTS[variant]
    assert ("--beta" in options) == ("beta" in row or "preset" not in row)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--variants", "dr_gpro"], "`variants` is 'dr_gpro'"),
        (["--generated_tokens", "0"], "`generated_tokens` is 0"),
        (["--num_generations", "1"], "`num_generations` is 1"),
        (["--seeds", "0", "1", "0"], "`seeds` names one twice: 0, 1, 0"),
        (["--seed", "5"], "`seed` would be the same in all runs .*use --seeds"),
        (["--max-generated-tokens=5"], "`max_generated_tokens` .*use --generated_tokens"),
    ],
)
def test_refused_before_the_first_run(flags: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        compare.main(["--output_dir", str(tmp_path / "runs"), *flags])
    assert not (tmp_path / "runs").exists() or not any((tmp_path / "runs").iterdir())


def test_a_run_is_finished_while_its_files_are_as_it_read_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.jsonl").write_text('{"question": "1+1?", "answer": 2}\n')
    Path("base.yaml").write_text("beta: 0.1\nsft_dataset: mine.jsonl\neval_datasets: [gsm8k, mine.jsonl]\n")
    words = ["--config=base.yaml", "--system_prompt", "x" * 5000, "--seed", "1"]
    files = named_files(words)
    assert list(files) == ["base.yaml", "mine.jsonl"] == list(named_files(["--config", "base.yaml", "--seed", "1"]))
    summary = {"after": {"accuracy": 0.5}, "command": "c", "files": files}
    Path("summary.json").write_text(json.dumps(summary))
    assert compare.is_finished(tmp_path, "c", files) and not compare.is_finished(tmp_path, "d", files)
    for name in files:
        text = Path(name).read_text()
        Path(name).write_text(text + "\n")
        assert not compare.is_finished(tmp_path, "c", named_files(words))
        Path(name).write_text(text)
    Path("summary.json").write_text(json.dumps({"after": {"accuracy": 0.5}, "command": "c"}))
    assert compare.is_finished(tmp_path, "c", {}) and not compare.is_finished(tmp_path, "c", files)


def test_a_back_end_is_left_to_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def one_run(args: Any, variant: str, seed: int, more: list[str]) -> Outcome:
        assert more == ["--backend", "unsloth"]
        return outcome(variant, seed, 0.25, 0.5)

    monkeypatch.setattr(compare, "one_run", one_run)
    folder = tmp_path / "runs"
    assert compare.main(["--seeds", "0", "--output_dir", str(folder), "--backend", "unsloth"]) == 0
    assert sorted(path.name for path in folder.iterdir()) == [f"comparison.{kind}" for kind in ("json", "md", "png")]


def test_a_fresh_run_begins_without_the_end_of_another(tmp_path: Path) -> None:
    for name in ("summary.json", "learning_curve.png", "metrics.jsonl", "log.txt"):
        (tmp_path / name).write_text("{}")
    forget_logs(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["log.txt"]


def test_a_run_ends_with_the_step_that_reaches_its_tokens(tiny_folder: Path, tmp_path: Path) -> None:
    # 4 completions of at most 8 tokens a step
    budget = {"max_steps": 20, "max_generated_tokens": 90}
    file = tmp_path / "base.yaml"
    file.write_text("logging_steps: 1\n")
    words = [*tiny_words(tiny_folder, tmp_path / "run", **budget), "--config", str(file)]
    assert gsm8k(words) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "generated_tokens" in row]
    made = [4 * row["completions/mean_length"] for row in rows]
    assert [row["generated_tokens"] for row in rows] == pytest.approx([sum(made[: i + 1]) for i in range(len(made))])
    assert rows[-2]["generated_tokens"] < 90 <= rows[-1]["generated_tokens"] and len(rows) < 20
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["after"] is not None and summary["files"] == named_files(words) and str(file) in summary["files"]


@pytest.mark.slow
def test_from_end_to_end(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = tiny_words(tiny_folder, tmp_path / "unused", max_steps=20)
    place = made.index("--output_dir")
    command = ["--variants", "dr_grpo", "ranks", "--seeds", "0", "1", "--generated_tokens", "60", "--jobs", "2"]
    command += ["--output_dir", str(tmp_path / "runs"), "--sft_steps", "0", "--eval_size", "4", *made[:place]]
    command += made[place + 2 :]
    assert compare.main(command) == 0
    found = Comparison.from_json(json.loads((tmp_path / "runs" / "comparison.json").read_text()))
    pairs = [(variant, seed) for variant in ("dr_grpo", "ranks") for seed in (0, 1)]
    assert [(run.variant, run.seed) for run in found.outcomes] == pairs
    assert all(60 <= run.generated_tokens < 60 + 32 and run.problems == 4 for run in found.outcomes)
    assert (tmp_path / "runs" / "comparison.md").read_text() in capsys.readouterr().out
    assert (tmp_path / "runs" / "comparison.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"

    # Again: only the run that is not whole is made
    summaries = sorted((tmp_path / "runs").glob("*/*/summary.json"))
    times: dict[Path, Any] = {path: path.stat().st_mtime_ns for path in summaries}
    torn = tmp_path / "runs" / "ranks" / "seed_1" / "summary.json"
    torn.write_text(json.dumps({**json.loads(torn.read_text()), "after": None}))
    assert compare.main(command) == 0
    assert [path for path in summaries if path.stat().st_mtime_ns != times[path]] == [torn]
    assert Comparison.from_json(json.loads((tmp_path / "runs" / "comparison.json").read_text())).outcomes[-1].seed == 1
