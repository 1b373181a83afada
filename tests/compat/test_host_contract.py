"""The private names of the hosts that we rely on: in what is installed, and in the wheels of TRL 1.13 to 1.16."""

import ast
import re
from pathlib import Path

import pytest
from host_contract import (
    GRPO,
    TRANSFORMERS_ATTRIBUTES,
    TRANSFORMERS_NEEDED,
    TRL_ATTRIBUTES,
    TRL_NEEDED,
    definition,
    files_of,
    from_wheel,
    installed,
    set_on_self,
    transformers_violations,
    trl_violations,
    wheel,
)

from house_rules import ALLOWED_HOOKS

ROOT = Path(__file__).resolve().parents[2]

# What a version lacks of what we use. Versions inside the bounds of pyproject.toml lack nothing.
TRL_LACKS: dict[str, list[str]] = {
    "1.13.0": ["GRPOTrainer does not set eos_token_ids"],
    "1.14.0": ["GRPOTrainer does not set eos_token_ids"],
    "1.15.0": [],
    "1.16.0": [],
}
TRANSFORMERS_LACKS: dict[str, list[str]] = {
    "5.3.0": [],
    "5.17.0": [],
    "5.23.0": [],
}


def test_what_is_installed() -> None:
    assert trl_violations(installed("trl", files_of(TRL_NEEDED, TRL_ATTRIBUTES))) == []
    transformers = installed("transformers", files_of(TRANSFORMERS_NEEDED, TRANSFORMERS_ATTRIBUTES))
    assert transformers_violations(transformers) == []


def test_every_hook_of_our_trainer_is_in_the_contract() -> None:
    needed = {one.name.rpartition(".")[2] for one in (*TRL_NEEDED, *TRANSFORMERS_NEEDED)}
    held = {name for names in (*TRL_ATTRIBUTES.values(), *TRANSFORMERS_ATTRIBUTES.values()) for name in names}
    assert needed | held >= ALLOWED_HOOKS


def test_every_attribute_that_our_trainer_reads_is_in_the_contract() -> None:
    read: set[str] = set()
    for path in (ROOT / "grpo_ext" / "trainer").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Attribute(value=ast.Name(id="self" | "trainer"), attr=name):
                    read.add(name)
    kinds = {"trl": TRL_ATTRIBUTES, "transformers": TRANSFORMERS_ATTRIBUTES}
    owners = {"trl": (GRPO, "GRPOTrainer"), "transformers": ("trainer.py", "Trainer")}
    for package, (file, owner) in owners.items():
        tree = definition(ast.parse(installed(package, {file})[file]), owner)
        assert tree is not None
        missing = read & set_on_self(tree) - {name for kind in kinds.values() for name in kind.get((file, owner), ())}
        assert not missing, f"{owner} sets {sorted(missing)}"


def test_every_private_import_of_compat_is_in_the_contract() -> None:
    text = (ROOT / "grpo_ext" / "compat.py").read_text(encoding="utf-8")
    found = re.findall(r"^from trl\.([\w.]+) import (.+)$", text, re.MULTILINE)
    imported = {(f"{module.replace('.', '/')}.py", name) for module, names in found for name in names.split(", ")}
    assert imported
    assert imported <= {(one.file, one.name.partition(".")[0]) for one in TRL_NEEDED}


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        (
            "def _compute_loss(self, model, inputs)",
            "def _loss(self, model, inputs)",
            "has no GRPOTrainer._compute_loss",
        ),
        ("def _compute_loss(self, model, inputs)", "def _compute_loss(self, model, rows)", "takes no inputs"),
        ("self._buffered_inputs", "self._buffer", "GRPOTrainer does not set _buffered_inputs"),
        ("repetition_penalty=self.repetition_penalty", "penalty=1", "VLLMGeneration without repetition_penalty"),
        ("self.ref_model =", "self.reference =", "GRPOTrainer does not set ref_model"),
        ('output["tool_mask"]', 'output["mask"]', "_generate_and_score_completions makes no column tool_mask"),
    ],
)
def test_a_changed_host_fails_in_one_line(old: str, new: str, line: str) -> None:
    host = installed("trl", files_of(TRL_NEEDED, TRL_ATTRIBUTES))
    assert old in host[GRPO]
    found = trl_violations({**host, GRPO: host[GRPO].replace(old, new)})
    assert len(found) == 1 and line in found[0] and "\n" not in found[0]


@pytest.mark.slow
@pytest.mark.parametrize("version", TRL_LACKS)
def test_wheels_of_trl(version: str, tmp_path: Path) -> None:
    found = trl_violations(from_wheel(wheel("trl", version, tmp_path), "trl"))
    assert found == TRL_LACKS[version], f"TRL {version}: {'; '.join(found) or 'lacks nothing'}"


@pytest.mark.slow
@pytest.mark.parametrize("version", TRANSFORMERS_LACKS)
def test_wheels_of_transformers(version: str, tmp_path: Path) -> None:
    found = transformers_violations(from_wheel(wheel("transformers", version, tmp_path), "transformers"))
    assert found == TRANSFORMERS_LACKS[version], f"transformers {version}: {'; '.join(found)}"
