"""Write the tables of docs/how-to/faults.md from the rows that the tests run: `python tests/faults/faults_page.py`."""

import re
from dataclasses import MISSING, fields
from functools import partial
from pathlib import Path
from typing import Any

from table import TABLE, rendered

from grpo_ext import GRPOExtConfig

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "faults.md"


def defaults() -> dict[str, Any]:
    """Default of each field of the config that has one."""
    return {spec.name: spec.default for spec in fields(GRPOExtConfig) if spec.default is not MISSING}


def _renewed(table: str, match: re.Match[str]) -> str:
    return match[1] + table


def page(text: str) -> str:
    """The text of the page with the table under each of its headings renewed."""
    for heading, rows in TABLE.items():
        pattern = rf"(^## {heading}\n(?:(?!^## |^\|).*\n)*)(?:^\|.*\n)+"
        # A replacement string would read backslashes
        text, found = re.subn(pattern, partial(_renewed, rendered(rows, defaults())), text, flags=re.M)
        if found != 1:
            raise ValueError(f"{PAGE.name} has {found} tables under `## {heading}`; it must have one.")
    return text


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
