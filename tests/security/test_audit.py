"""The audit of pinned packages fails on an advisory and never passes on silence."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

CI = Path(__file__).resolve().parents[2] / ".ci"
FAULT = {"id": "PYSEC-1", "fix_versions": ["2.0"]}


def row(name: str, *faults: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "version": "1.0", "vulns": list(faults)}


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", CI / "audit.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_pin_is_asked_about_once(audit: ModuleType) -> None:
    lines = audit.pinned(CI)
    assert len(lines) > 150 and {"trl==1.15.0", "trl==1.16.0", "pip-audit==2.10.1"} <= set(lines)
    found = audit.parts(lines)
    assert sorted(line for part in found for line in part) == lines
    for part in found:
        names = [line.partition("==")[0] for line in part]
        assert len(set(names)) == len(names)


def test_an_advisory_fails(audit: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    code, said, whole = audit.verdict(["a==1.0", "b==1.0"], [[row("a")], [row("b", FAULT)]])
    assert (code, whole) == (1, True) and "b 1.0: PYSEC-1, mended in 2.0" in said
    # Also where another package was not looked up
    assert audit.verdict(["a==1.0", "b==1.0"], [None, [row("b", FAULT)]])[::2] == (1, False)
    monkeypatch.setitem(audit.ACCEPTED, "PYSEC-1", "only on another system")
    assert audit.verdict(["b==1.0"], [[row("b", FAULT)]])[::2] == (0, True)


@pytest.mark.parametrize("answer", [None, [], [{"name": "b", "version": "1.0", "skip_reason": "not found"}]])
def test_silence_is_told(audit: ModuleType, answer: list[dict[str, Any]] | None) -> None:
    code, said, whole = audit.verdict(["a==1.0", "b==1.0"], [[row("a")], answer])
    assert (code, whole) == (0, False) and said.startswith("NOT RUN for 1 of 2 packages")
    assert audit.verdict(["a==1.0"], [[row("a")]]) == (0, "No advisories for 1 packages.", True)


@pytest.mark.parametrize("answer", [None, [{"name": "jinja2", "version": "2.10", "skip_reason": "not found"}],
                                    [{"name": "jinja2", "version": "2.10", "vulns": []}]])  # fmt: skip
def test_a_service_that_knows_nothing_is_not_believed(
    audit: ModuleType,
    answer: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(audit, "MARK", tmp_path / "not-run")
    monkeypatch.setattr(audit, "ask", lambda service, lines: answer)
    assert audit.main() == 0
    assert capsys.readouterr().out.startswith("NOT RUN: no service of advisories")
    assert (tmp_path / "not-run").exists()
    monkeypatch.setattr(
        audit, "ask", lambda service, lines: [row("x", FAULT)] if lines == [audit.KNOWN] else [row(x) for x in lines]
    )
    assert audit.main() == 0
    assert not (tmp_path / "not-run").exists()
