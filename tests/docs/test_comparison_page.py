"""The tables of measured comparisons are those of the runs that are kept beside the page."""

import json
from pathlib import Path

import pytest
from snippets import own_files

from grpo_ext.recipes import compare
from grpo_ext.report.comparison import Comparison, table

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "explanation" / "comparisons.md").read_text(encoding="utf-8")
KEPT = sorted((DOCS / "assets" / "comparisons").glob("*.json"))


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_a_table_is_its_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = Comparison.from_json(json.loads(path.read_text(encoding="utf-8")))
    assert table(found) in PAGE
    assert f"```bash\n{found.command}\n```" in PAGE
    assert f"(../assets/comparisons/{path.stem}.png)" in PAGE and path.with_suffix(".png").is_file()
    # The command still means these runs
    words = found.command.split()
    assert words[:3] == ["python", "-m", "grpo_ext.recipes.compare"]
    args, more = compare.parser().parse_known_args(words[3:])
    own_files(more)
    args.output_dir = str(tmp_path)
    compare.check(args, more)
    assert args.generated_tokens == found.budget
    pairs = {(run.variant, run.seed) for run in found.outcomes}
    assert pairs == {(variant, seed) for variant in args.variants for seed in args.seeds}
    assert all(run.generated_tokens >= found.budget for run in found.outcomes)


def test_there_is_one() -> None:
    assert KEPT
