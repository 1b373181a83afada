"""The tables of the page on faults are the rows that the tests run."""

import ast
from pathlib import Path

import pytest
from faults_page import PAGE, defaults, page
from table import TABLE, Row, rendered

ROWS = [row for part in TABLE.values() for row in part]


def decorated() -> set[str]:
    """Tests of this folder that are decorated with `by_its_rows`."""
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in Path(__file__).parent.glob("test_*.py")]
    return {
        node.name
        for tree in trees
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
        and any(isinstance(mark, ast.Name) and mark.id == "by_its_rows" for mark in node.decorator_list)
        and "row" in {argument.arg for argument in node.args.args}
    }


def test_the_page_is_what_the_rows_say() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text == page(text), "run `python tests/faults/faults_page.py`"


def test_no_other_table_is_on_the_page() -> None:
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    assert lines == "".join(rendered(rows, defaults()) for rows in TABLE.values()).splitlines()


def test_every_row_has_its_test_and_every_test_its_rows() -> None:
    assert {row.test for row in ROWS} == decorated()


def test_names_are_told_apart() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_a_row_is_whole(row: Row) -> None:
    assert all(text and "|" not in text and "\n" not in text for text in (row.fault, row.behaviour))
    assert "|" not in row.beyond
    assert set(row.limits) <= defaults().keys()
