"""The reference pages say what the code has, all of it."""

import ast
import importlib
import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from page_parts import DOCS
from preset_pages import NOTES
from reference_pages import CHOSEN_BY, PAGES, PARSERS, RECIPES, axes, modules, public
from tiny_documented_runs import RUNS, logged

import grpo_ext
from grpo_ext.compat import TRLConfig
from grpo_ext.config import GRPOExtConfig
from grpo_ext.hub.formula import PAPERS
from grpo_ext.presets import PRESETS
from grpo_ext.recipes.iterative import ReplayedReward
from grpo_ext.trainer.sampler import METRICS

PACKAGE = Path(grpo_ext.__file__).parent
METRICS_PAGE = (DOCS / "reference" / "metrics.md").read_text(encoding="utf-8")
# What metrics are collected in: TRL's dict of one mode, the name that ours give it, the row of the callback
METRICS_DICT = re.compile(r"(^|\.)(_mode)?_?metrics(\[.*\])?$|^row$")
FROM_TRAINER = re.compile(r"step|epoch|loss|grad_norm|learning_rate|total_flos|train_\w+|eval_\w+")


@pytest.mark.parametrize("place", PAGES)
def test_the_page_is_what_the_code_says(place: str) -> None:
    assert (DOCS / place).read_text(encoding="utf-8") == PAGES[place](), "run `python tests/docs/reference_pages.py`"


def test_no_page_of_a_preset_is_left_over() -> None:
    pages = {path.stem for path in (DOCS / "reference" / "presets").glob("*.md")}
    assert pages == {"index", *PRESETS} and set(NOTES) == set(PRESETS) == set(PAPERS)


def test_every_own_field_and_every_recipe_is_there() -> None:
    page = PAGES["reference/config.md"]()
    added = GRPOExtConfig.__dataclass_fields__.keys() - TRLConfig.__dataclass_fields__.keys()
    assert added and all(f"| `{name}` |" in page for name in added)
    files = (PACKAGE / "recipes").glob("*.py")
    faces = {path.stem for path in files if "\n    run(main)\n" in path.read_text(encoding="utf-8")}
    assert faces == {*RECIPES, *(words.rpartition(".")[2] for words in PARSERS if ".recipes." in words)}


def test_every_axis_has_its_formulas() -> None:
    found = axes()
    assert set(found) == {*CHOSEN_BY.values()}
    for field, rows in found.items():
        assert all(rows.values()), field


@pytest.mark.parametrize("module", modules(), ids=lambda module: module.__name__)
def test_functions_say_what_they_take_and_give(module: object) -> None:
    for name, thing in public(module):  # type: ignore[arg-type]
        text = thing.__doc__ or ""
        needed = ["Attributes:"] if isinstance(thing, type) else ["Args:", "Returns:"]
        assert all(heading in text for heading in needed), name


# Metrics


def rows() -> list[str]:
    """The names in the first column of the page's tables."""
    cells = [line.split("|")[1] for line in METRICS_PAGE.splitlines() if line.startswith("| `")]
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


def is_listed(name: str) -> bool:
    """Whether a logged name is on the page, where `<name>` stands for any."""
    return any(re.fullmatch(re.sub("<name>", ".+", row), name) for row in rows())


def written(path: Path) -> Iterator[str]:
    """Names of metrics in a file's source; the parts of an f-string that are known later are `*`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    constants = {
        ast.unparse(node.targets[0]): node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and METRICS_DICT.search(ast.unparse(node.value)):
            match node.slice:
                case ast.Constant(value=str(name)):
                    yield name
                case ast.Name(id=name) if name in constants:
                    yield constants[name]
                case ast.JoinedStr(values=parts):
                    yield "".join(str(part.value) if isinstance(part, ast.Constant) else "*" for part in parts)


def sources() -> dict[str, Path]:
    trl = importlib.util.find_spec("trl")
    assert trl is not None and trl.origin is not None
    ours = {f"grpo_ext/trainer/{path.name}": path for path in (PACKAGE / "trainer").glob("*.py")}
    return {
        "trl": Path(trl.origin).parent / "trainer" / "grpo_trainer.py",
        "grpo_ext/callbacks/metrics.py": PACKAGE / "callbacks" / "metrics.py",
        **ours,
    }


@pytest.mark.parametrize("source", sources())
def test_every_metric_of_the_source_is_on_the_page(source: str) -> None:
    found = set(written(sources()[source])) - {"train", "eval", "*"}
    assert source != "trl" or len(found) > 30
    for name in found:
        pattern = re.escape(name).replace(r"\*", ".+")
        assert any(re.fullmatch(pattern, row) for row in rows()), name


@pytest.mark.parametrize("run", RUNS)
def test_every_metric_of_a_run_is_on_the_page(run: str, tmp_path: Path) -> None:
    seen = logged(run, tmp_path)
    assert RUNS[run].sees <= seen
    assert [name for name in seen if not is_listed(name)] == []


def test_nothing_is_on_the_page_that_no_code_logs(tmp_path: Path) -> None:
    known = {name for source in sources().values() for name in written(source)}
    known |= {f"sampling/{name}" for name in METRICS}
    known |= {f"rounds/reward_model_{name}" for name in summary_names()} | set().union(
        *(run.sees for run in RUNS.values())
    )
    patterns = [re.escape(name).replace(r"\*", ".+") for name in known - {"*"} if not re.fullmatch(r"\w+/\*", name)]
    unknown = [
        row for row in rows() if not FROM_TRAINER.fullmatch(row) and not any(re.fullmatch(p, row) for p in patterns)
    ]
    assert unknown == []


def summary_names() -> list[str]:
    """What the training of a reward model between rounds hands to the log."""
    text = Path(importlib.import_module(ReplayedReward.__module__).__file__ or "").read_text(encoding="utf-8")
    (kept,) = re.findall(r"kept = (\(.*?\))", text)
    return list(json.loads(kept.replace("(", "[").replace(")", "]")))
