"""PNG files for papers and for the end of a run."""

from pathlib import Path

from made_runs import lines, make_run, metrics
from PIL import Image

from grpo_ext.report import learning_curve, read_run
from grpo_ext.report.pictures import export


def test_a_picture_of_two_runs(tmp_path: Path) -> None:
    rows = [{"step": step, "reward": step / 20, "entropy": 0.5, "kl": 0.1} for step in range(1, 25)]
    runs = [read_run(make_run(tmp_path / name, metrics=rows)) for name in ("a", "cost $5 $x")]
    export(runs, tmp_path / "p.png", "A title with $ and _")
    one = tmp_path / "one.png"
    export(runs[:1], one)
    with Image.open(tmp_path / "p.png") as two, Image.open(one) as single:
        assert two.width == single.width > 1000
        colours = {colour for _, colour in two.convert("RGB").getcolors(10**6) or ()}
        alone = {colour for _, colour in single.convert("RGB").getcolors(10**6) or ()}
    # Vermilion is the second run's
    assert (0xD5, 0x5E, 0x00) in colours and (0xD5, 0x5E, 0x00) not in alone


def test_the_learning_curve_draws_what_there_is(tmp_path: Path) -> None:
    sizes = {}
    for name, rows in {"all": metrics(4), "reward": [{"step": 1, "reward": 0.5}], "none": []}.items():
        lines(tmp_path / f"{name}.jsonl", rows)
        learning_curve(tmp_path / f"{name}.jsonl", tmp_path / f"{name}.png", name)
        with Image.open(tmp_path / f"{name}.png") as picture:
            sizes[name] = picture.width
    assert sizes["all"] == 3 * sizes["reward"] and sizes["none"] == sizes["reward"]
    learning_curve(tmp_path / "missing.jsonl", tmp_path / "missing.png", "x")
