"""The house rules, read off the syntax tree: who imports whom, what is private to TRL, and how code may look."""

import ast
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from house_rules import (
    ALLOWED_HOOKS,
    FACADE,
    LEVELS,
    LINES,
    ROOT,
    beyond_torch,
    cycle,
    habits,
    host_private_names,
    imported_rooms,
    machine_paths,
    package_of,
    private_attributes,
    private_imports,
    room_of,
    upward_imports,
)

T = TypeVar("T")
CODE = ["grpo_ext", "tests", "recipes", "examples"]
TEXT = [*CODE, "docs", ".ci"]


def parsed(*folders: str) -> list[tuple[Path, ast.Module]]:
    paths = sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return [(path, ast.parse(path.read_text(encoding="utf-8"))) for path in paths]


def violations(files: list[tuple[Path, T]], check: Callable[[Path, T], Iterator[str]]) -> list[str]:
    return [f"{path.relative_to(ROOT)}: {found}" for path, content in files for found in check(path, content)]


OURS = parsed("grpo_ext")
OUTSIDE_COMPAT = [(path, tree) for path, tree in OURS if room_of(path) != "compat"]


def test_imports_point_up_only() -> None:
    assert OURS
    assert not violations(OURS, lambda path, tree: upward_imports(tree, room_of(path), package_of(path)))


def test_rooms_of_one_level_have_no_cycle() -> None:
    graph: dict[str, set[str]] = {}
    for path, tree in OURS:
        room = room_of(path)
        graph.setdefault(room, set()).update(
            target for _, target in imported_rooms(tree, room, package_of(path)) if FACADE not in (room, target)
        )
    assert not cycle(graph)


def test_ops_imports_torch_only() -> None:
    ops = [(path, tree) for path, tree in OURS if room_of(path) == "ops"]
    assert not violations(ops, lambda path, tree: beyond_torch(tree))


def test_private_host_modules_stay_in_compat() -> None:
    assert not violations(OUTSIDE_COMPAT, lambda path, tree: private_imports(tree))


def test_private_host_names_stay_in_compat() -> None:
    assert not violations(
        OUTSIDE_COMPAT, lambda path, tree: private_attributes(tree, room_of(path).startswith("trainer"))
    )


def test_allowed_hooks_exist_in_the_host() -> None:
    assert host_private_names() >= ALLOWED_HOOKS


def test_habits() -> None:
    assert not violations(parsed(*CODE), lambda path, tree: habits(tree))


def test_files_stay_short() -> None:
    files = [path for path, _ in parsed(*CODE)]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert not {path: length for path, length in lengths.items() if length > LINES}


def test_no_path_of_one_machine() -> None:
    files = [path for part in TEXT for path in (ROOT / part).rglob("*") if path.suffix != ".pyc"]
    files += [*ROOT.glob("*.md"), *ROOT.glob("*.toml"), ROOT / "Makefile"]
    texts = [(path, path.read_bytes().decode("utf-8", "ignore")) for path in files if path.is_file()]
    assert not violations(texts, lambda path, text: machine_paths(text))


# The checkers themselves, on snippets that break a rule and on neighbours that do not.


def snippet(code: str) -> ast.Module:
    return ast.parse(textwrap.dedent(code))


@pytest.mark.parametrize(
    ("room", "code", "violations"),
    [
        ("ops", "from grpo_ext.objective import Objective", 1),
        ("ops", "def f():\n    from ..trainer import Trainer", 1),
        ("ops", "from .. import config, ops", 1),
        ("scoring", "importlib.import_module('grpo_ext.models.load')", 1),
        ("config", "from grpo_ext import GRPOExtTrainer", 1),
        ("recipes", "from grpo_ext import GRPOExtTrainer", 0),
        ("hub", "from grpo_ext import __version__", 0),
        ("rewards", "import grpo_ext.data.gsm8k", 0),
        ("trainer", "import torch\nfrom grpo_ext.ops.kl import k3", 0),
        ("annex", "import torch", 1),
        (FACADE, "from grpo_ext.cli import main", 0),
    ],
)
def test_an_upward_import_is_found(room: str, code: str, violations: int) -> None:
    found = list(upward_imports(snippet(code), room, ("grpo_ext", room)))
    assert len(found) == violations, found


def test_a_cycle_is_found() -> None:
    assert cycle({"data": {"rewards"}, "rewards": {"scoring"}, "scoring": {"rewards"}}) == [
        "rewards",
        "scoring",
        "rewards",
    ]
    assert cycle({"data": {"rewards", "ops"}, "rewards": {"ops"}}) == []


def test_a_room_of_each_kind_has_a_level() -> None:
    assert sorted(set(LEVELS.values())) == [0, 1, 2, 3, 4, 5]


def test_what_ops_may_not_import_is_found() -> None:
    assert len(list(beyond_torch(snippet("import numpy as np\nfrom transformers.utils import logging")))) == 2
    assert not list(beyond_torch(snippet("import math\nimport torch.nn.functional as F\nfrom .masking import mean")))


@pytest.mark.parametrize(
    ("code", "violations"),
    [
        ("from trl.trainer.utils import pad", 1),
        ("import trl.trainer", 1),
        ("from trl import _compat", 1),
        ("from vllm._custom_ops import rms_norm", 1),
        ("import unsloth._utils", 1),
        ("from trl import GRPOTrainer", 0),
        ("import trl", 0),
        ("from vllm.lora.request import LoRARequest", 0),
        ("from .trl import pad", 0),
    ],
)
def test_a_private_import_is_found(code: str, violations: int) -> None:
    assert len(list(private_imports(snippet(code)))) == violations


@pytest.mark.parametrize(
    ("code", "in_trainer", "violations"),
    [
        ("from trl import GRPOTrainer\nGRPOTrainer._compute_loss(t)", False, 1),
        ("from trl import GRPOTrainer as T\ngetattr(T, '_anything')", False, 1),
        ("import vllm\nvllm.engine._x = 1", False, 1),
        ("def on_log(trainer):\n    return trainer._metrics", False, 1),
        ("self._inner_training_loop()", True, 1),
        ("super()._get_collator_with_removed_columns()", True, 1),
        ("super()._compute_loss(model, inputs)", True, 0),
        ("def _evaluate(self): ...", True, 0),
        ("self._scorer = 1\nself.__dict__", True, 0),
        ("self._inner_training_loop", False, 0),
        ("import torch\ntorch._dynamo.disable", False, 0),
    ],
)
def test_a_private_attribute_is_found(code: str, in_trainer: bool, violations: int) -> None:
    assert len(list(private_attributes(snippet(code), in_trainer))) == violations


@pytest.mark.parametrize(
    ("code", "violations"),
    [
        ("hasattr(x, 'y')", 1),
        ("try:\n    f()\nexcept:\n    pass", 1),
        ("try:\n    f()\nexcept Exception as error:\n    pass", 1),
        ("try:\n    f()\nexcept (ValueError, BaseException):\n    pass", 1),
        ("try:\n    f()\nexcept (ValueError, OSError):\n    pass", 0),
        ("getattr(x, 'y', None)", 0),
    ],
)
def test_a_bad_habit_is_found(code: str, violations: int) -> None:
    assert len(list(habits(snippet(code)))) == violations


def test_a_machine_path_is_found() -> None:
    assert list(machine_paths("data = '" + "/home" + "/someone/data'"))
    assert list(machine_paths("/tmp" + "/scratch"))
    assert not list(machine_paths("see https://example.org/home/page and ../work/data, tests/tmp/x"))
