"""`grpo-ext report`."""

from pathlib import Path

import pytest
from made_runs import make_run

from grpo_ext.__main__ import main

PNG = b"\x89PNG\r\n\x1a\n"


def test_a_page_in_the_folder_of_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run(tmp_path / "mine", groups=None)
    assert main(["report", str(folder)]) == 0
    assert (folder / "report.html").read_text().startswith("<!doctype html>")
    printed = capsys.readouterr().out
    assert "report.html: 2." in printed and "opens without a network" in printed
    assert "mine: No completions were kept" in printed
    assert not list(folder.glob("*.png"))


def test_several_runs_a_title_and_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"step": step, "reward": 0.1 * step, "kl": 0.1} for step in range(1, 5)]
    folders = [str(make_run(tmp_path / name / "run", metrics=rows)) for name in "ab"]
    monkeypatch.chdir(tmp_path)
    assert main(["report", *folders, "--png", "--title", "Two <seeds> for 3 $"]) == 0
    content = (tmp_path / "report.html").read_text()
    assert "<h1>Two &lt;seeds&gt; for 3 $</h1>" in content and "a/run" in content and "b/run" in content
    assert (tmp_path / "report.png").read_bytes().startswith(PNG)


def test_another_file(tmp_path: Path) -> None:
    target = tmp_path / "new" / "page.html"
    assert main(["report", str(make_run(tmp_path / "r")), "--output", str(target)]) == 0
    assert target.is_file() and not (tmp_path / "r" / "report.html").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["{tmp}/none"], "none is no folder; give the output folder of a run."),
        (["{tmp}/empty"], "holds no log of a GRPO run"),
        (["{tmp}/r", "{tmp}/empty/../r"], "is named twice; name each run once."),
        (["{tmp}/r", "--output", "{tmp}/empty"], "is a folder; name a file in it"),
    ],
)
def test_mistakes_are_one_sentence(
    words: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    make_run(tmp_path / "r")
    assert main(["report", *(word.format(tmp=tmp_path) for word in words)]) == 2
    printed = capsys.readouterr().err
    assert sentence in printed and printed.startswith("error: ") and printed.count("\n") == 1
