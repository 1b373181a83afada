"""The back end comes first: what is imported when, and what is said when it is too late or not there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from grpo_ext import backends
from grpo_ext.backends import BACKENDS, BOUND, active_backend, compile_folder, import_backend, named_backend
from grpo_ext.folders import cache_root

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def hosts(tmp_path: Path) -> Path:
    """Packages that stand for the real ones: they notice that they are imported, and take no time."""
    for name, text in {
        # As the real one, it begins with a part of its own and goes on to TRL
        "unsloth/__init__.py": "import os\nfrom . import part\nimport trl.trainer.grpo_trainer\n"
        "print('unsloth in', os.environ.get('UNSLOTH_COMPILE_LOCATION'))\n",
        "unsloth/part.py": "",
        "trl/__init__.py": "",
        "trl/trainer/__init__.py": "",
        "trl/trainer/grpo_trainer.py": "class GRPOTrainer: ...\n",
        "trl/trainer/grpo_config.py": "class GRPOConfig: ...\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def python(hosts: Path, code: str, **variables: str) -> str:
    """What a script in `hosts` says; the packages there come before the installed ones."""
    (hosts / "train.py").write_text(code)
    env = {key: value for key, value in os.environ.items() if key != "UNSLOTH_COMPILE_LOCATION"}
    env |= {
        "PYTHONPATH": os.pathsep.join([str(hosts), str(ROOT)]),
        "GRPO_EXT_CACHE": str(hosts / "cache"),
        **variables,
    }
    done = subprocess.run([sys.executable, "train.py"], cwd=hosts, env=env, capture_output=True, text=True)
    return (done.stdout + done.stderr).strip()


IMPORT = "from grpo_ext.backends import active_backend, import_backend\nimport_backend('unsloth')\n"


def test_transformers_imports_nothing() -> None:
    code = "import sys; from grpo_ext.backends import *; import_backend('transformers'); print(active_backend(), "
    code += "[name for name in ('torch', 'transformers', 'trl', 'peft', 'unsloth') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "transformers []"


def test_an_unknown_name() -> None:
    with pytest.raises(ValueError, match=r"backend is 'deepspeed', but must be one of 'transformers', 'unsloth'\."):
        import_backend("deepspeed")
    assert set(BACKENDS) == {"transformers", "unsloth"}
    assert active_backend() == "transformers"


def test_unsloth_is_imported_with_its_folder_in_our_cache(hosts: Path) -> None:
    said = python(hosts, IMPORT + "print(active_backend())\nimport_backend('unsloth')")
    first, second = said.splitlines()
    assert second == "unsloth"
    folder = Path(first.removeprefix("unsloth in "))
    assert folder.parent == hosts / "cache" / "unsloth"
    # A value of the user's own is left alone
    assert "unsloth in elsewhere" in python(hosts, IMPORT, UNSLOTH_COMPILE_LOCATION="elsewhere")


def test_an_import_by_the_user_is_as_good(hosts: Path) -> None:
    code = "import unsloth\nfrom trl.trainer.grpo_trainer import GRPOTrainer\n" + IMPORT + "print(active_backend())"
    assert python(hosts, code).splitlines() == ["unsloth in None", "unsloth"]


@pytest.mark.parametrize(
    ("line", "module"),
    [
        ("from trl.trainer.grpo_trainer import GRPOTrainer", "trl.trainer.grpo_trainer"),
        ("import trl.trainer.grpo_config", "trl.trainer.grpo_config"),
    ],
)
@pytest.mark.parametrize("unsloth", ["", "import unsloth\n"])
def test_a_class_that_was_bound_before_is_named_with_its_line(
    hosts: Path, line: str, module: str, unsloth: str
) -> None:
    said = python(hosts, f"import os\n{line}\n{unsloth}{IMPORT}").splitlines()[-1]
    assert said == (
        f"ImportError: {module} was imported before unsloth, which no longer reaches the classes in it; move `import "
        f"unsloth` or `grpo_ext.backends.import_backend('unsloth')` above line 2 of train.py, `{line}`."
    )


def test_our_own_classes_are_bound_too(hosts: Path) -> None:
    code = "import sys, types\nsys.modules['grpo_ext.config'] = types.ModuleType('grpo_ext.config')\n" + IMPORT
    said = python(hosts, code).splitlines()[-1]
    assert "grpo_ext.config was imported before unsloth" in said
    assert "above `from grpo_ext import GRPOExtConfig`." in said
    assert {"grpo_ext.trainer", "grpo_ext.config"} < BOUND.keys()


def test_unsloth_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "BOUND", {})
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"unsloth is not installed; `pip install .* doctor --backend unsloth` says"):
        import_backend("unsloth")


@pytest.mark.parametrize("error", ["ImportError", "NotImplementedError", "RuntimeError"])
def test_unsloth_cannot_be_imported(hosts: Path, error: str) -> None:
    (hosts / "unsloth" / "__init__.py").write_text(f"raise {error}('You need a GPU.\\nAnd luck.')")
    said = python(hosts, IMPORT).splitlines()[-1]
    assert said.startswith("ImportError: unsloth ") and "is installed but cannot be imported (You need a GPU)" in said
    assert "`grpo-ext doctor --backend unsloth` says" in said


def test_another_setting_is_another_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GRPO_EXT_CACHE", str(tmp_path))
    usual = compile_folder()
    assert cache_root() == tmp_path and usual.parent == tmp_path / "unsloth" and compile_folder() == usual
    monkeypatch.setenv("UNSLOTH_COMPILE_DISABLE", "1")
    assert compile_folder() != usual
    monkeypatch.delenv("UNSLOTH_COMPILE_DISABLE")
    monkeypatch.setattr(backends.importlib.metadata, "version", lambda name: "0")
    assert compile_folder() != usual
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_run_without_unsloth_never_imports_it(hosts: Path) -> None:
    (hosts / "trl").rename(hosts / "not_trl")
    code = """
import sys
from grpo_ext import GRPOExtConfig, GRPOExtTrainer, load_policy
from grpo_ext.models import save_policy
import grpo_ext.recipes.grpo, grpo_ext.plan.command, grpo_ext.doctor
print("unsloth" in sys.modules, active_backend())
"""
    assert "False transformers" in python(hosts, IMPORT.splitlines()[0] + code).splitlines()


def test_the_name_on_a_command_line_or_in_its_file(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("backend: unsloth\nlora_r: 8\n")
    assert named_backend([]) == named_backend(["--lora_r", "8"]) == "transformers"
    assert named_backend(["--backend", "unsloth"]) == named_backend(["--backend=unsloth"]) == "unsloth"
    assert named_backend(["--config", str(file)]) == named_backend([f"--config={file}"]) == "unsloth"
    assert named_backend(["--config", str(file), "--backend", "transformers"]) == "transformers"
    for text in ("lora_r: 8", "- a list", "}{", ""):
        file.write_text(text)
        assert named_backend(["--config", str(file)]) == "transformers"
    assert named_backend(["--config", str(tmp_path / "none.yaml")]) == "transformers"
