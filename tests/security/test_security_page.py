"""The page on security names tests that are there, and all of this folder."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_each_claim_has_its_test() -> None:
    page = (ROOT / "docs" / "explanation" / "security.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ")][1:]
    named = [re.findall(r"`(tests/[\w/]+\.py)`", row.split("|")[3]) for row in rows]
    assert rows and all(named)
    assert not [path for paths in named for path in paths if not (ROOT / path).is_file()]
    here = {f"tests/security/{path.name}" for path in Path(__file__).parent.glob("test_*.py")}
    assert here - {path for paths in named for path in paths} == {"tests/security/test_security_page.py"}
