"""The page on rewards names every reward, and its code runs."""

import re
from pathlib import Path

import pytest

from grpo_ext.rewards import ANSWER_FORMATS, FACTORIES, REWARDS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "how-to" / "rewards.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)\n```\n\n", PAGE, re.DOTALL)


def rows_under(heading: str) -> dict[str, list[str]]:
    """The rows of the first table after a text, by what stands in backquotes in their first cell."""
    table = PAGE.split(heading)[1].strip().split("\n\n")[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    return {row[0].strip("`"): row[1:] for row in cells}


def test_every_reward_is_in_its_table() -> None:
    table = rows_under("takes these names:")
    assert list(table) == list(REWARDS)
    for name, reward in REWARDS.items():
        columns = getattr(reward, "columns", ())
        assert table[name][0] == ", ".join(f"`{column}`" for column in columns), name
    assert list(rows_under("in a script of yours:")) == list(FACTORIES)
    assert all(f"`{name}`" in PAGE for name in ANSWER_FORMATS)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_the_code_runs(number: int) -> None:
    exec(compile(BLOCKS[number], f"block {number} of rewards.md", "exec"), {})


def test_there_is_code() -> None:
    assert len(BLOCKS) == 4
