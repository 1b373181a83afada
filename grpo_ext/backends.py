"""What loads and trains the policy, chosen before TRL's classes are bound.

Unsloth writes TRL's trainer anew when it is imported and puts its own class in the place of TRL's. A class that was
made before from TRL's own stays what it was, so the choice is the first thing that a program does.
"""

import ast
import hashlib
import importlib.metadata
import importlib.util
import math
import os
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path

from grpo_ext.faults import first_line
from grpo_ext.flags import flag
from grpo_ext.folders import cache_root
from grpo_ext.yaml_file import read_yaml

COMPILE_FOLDER = "UNSLOTH_COMPILE_LOCATION"
# What the source that Unsloth writes depends on, beside its own environment variables.
GENERATED_FROM = ("unsloth", "unsloth_zoo", "torch", "transformers", "trl", "peft", "bitsandbytes")
# Modules that hold a class made from TRL's GRPO classes, or those classes, and the line that brings each in. The first
# that is found is named, so what a user writes comes before what it pulls in.
BOUND = {
    "grpo_ext.trainer": "from grpo_ext import GRPOExtTrainer",
    "grpo_ext.config": "from grpo_ext import GRPOExtConfig",
    "grpo_ext.compat": "import grpo_ext.compat",
    "trl.trainer.grpo_trainer": "from trl import GRPOTrainer",
    "trl.trainer.grpo_config": "from trl import GRPOConfig",
}

CLASSES = {line.rpartition(" ")[2] for line in BOUND.values() if line.startswith("from")}


def import_backend(name: str) -> None:
    """Make a back end ready; call it before the first import of a trainer or config class.

    For "unsloth" it imports unsloth, with its folder of generated source put into our cache folder unless
    `UNSLOTH_COMPILE_LOCATION` names another one. For "transformers" it imports nothing.

    Args:
        name: a key of `BACKENDS`.

    Raises:
        ValueError: there is no such back end.
        ImportError: Unsloth is missing or cannot be imported, or a class was made from TRL's before it.
    """
    if name not in BACKENDS:
        raise ValueError(f"backend is {name!r}, but must be one of {', '.join(map(repr, BACKENDS))}.")
    BACKENDS[name]()


def active_backend() -> str:
    """The back end that this process uses: "unsloth" once unsloth is imported, otherwise "transformers"."""
    return "unsloth" if "unsloth" in sys.modules else "transformers"


def named_backend(words: Sequence[str]) -> str:
    """The back end that a command line or its YAML names, read before anything is parsed for real.

    Args:
        words: the words after the program's name; `--backend` wins over the key `backend` in the file of `--config`.

    Returns:
        The name as it was given, or "transformers" where nothing names one. What is wrong otherwise is left to the
        parser.
    """
    named, path = flag(words, "backend"), flag(words, "config")
    if named is None and path is not None:
        try:
            named = read_yaml(path).get("backend")
        except (OSError, ValueError):
            named = None
    return str(named or "transformers")


def _transformers() -> None:
    """Nothing is imported early: TRL's own classes are the ones to use."""


def _unsloth() -> None:
    _refuse_bound()
    if "unsloth" in sys.modules:
        return
    if importlib.util.find_spec("unsloth") is None:
        raise ImportError(
            "backend is 'unsloth', but unsloth is not installed; `pip install 'grpo-ext[unsloth,quantization]'` "
            "brings it, and `grpo-ext doctor --backend unsloth` says what else it needs here."
        )
    os.environ.setdefault(COMPILE_FOLDER, str(compile_folder()))
    try:
        import_module("unsloth")
    # All that its import was seen to raise: no GPU, a version that does not fit, another package's change
    except (ImportError, NotImplementedError, RuntimeError, AttributeError, OSError) as error:
        raise ImportError(
            f"unsloth {_version('unsloth')} is installed but cannot be imported ({first_line(error)}); "
            "`grpo-ext doctor --backend unsloth` says which version or package does not fit and what mends it."
        ) from error


BACKENDS = {"transformers": _transformers, "unsloth": _unsloth}


def compile_folder() -> Path:
    """Folder for the source that Unsloth generates: one for each set of versions and of Unsloth's own settings.

    Unsloth locks and checks each file, so processes that generate the same source may share a folder; processes that
    would generate different source get different ones.
    """
    facts = [f"{name}={_version(name)}" for name in GENERATED_FROM]
    facts += sorted(f"{name}={value}" for name, value in os.environ.items() if name.startswith("UNSLOTH_"))
    key = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:12]
    return (cache_root() / "unsloth" / f"{_version('unsloth')}-{key}").expanduser().absolute()


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def first_seen(name: str) -> float:
    """Place of a package or module in the order of import, by the first part of it that was complete; inf if absent.

    A package moves to the end of `sys.modules` when its import is complete, behind all that it has imported itself.
    """
    places = (at for at, known in enumerate(sys.modules) if known == name or known.startswith(f"{name}."))
    return next(places, math.inf)


def _refuse_bound() -> None:
    since = first_seen("unsloth")
    early = [name for name in BOUND if name in sys.modules and first_seen(name) < since]
    if not early:
        return
    line = next(_lines_of_main(), f"`{BOUND[early[0]]}`")
    raise ImportError(
        f"{early[0]} was imported before unsloth, which no longer reaches the classes in it; move `import unsloth` or "
        f"`grpo_ext.backends.import_backend('unsloth')` above {line}."
    )


def _lines_of_main() -> Iterator[str]:
    """Lines of the running script that bring in one of those classes."""
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    # A test runner or a command of a package is no script that a user edits
    if file is None or not file.endswith(".py") or "site-packages" in file or not os.path.isfile(file):
        return
    try:
        tree = ast.parse(Path(file).read_text(encoding="utf-8", errors="replace"))
    except SyntaxError:
        return
    for node in sorted(ast.walk(tree), key=lambda node: getattr(node, "lineno", 0)):
        match node:
            case ast.Import(names=names):
                found = {alias.name for alias in names} & {*BOUND, "trl"}
            case ast.ImportFrom(module=str(module), names=names, level=0):
                found = {alias.name for alias in names} & CLASSES or {module} & BOUND.keys()
            case _:
                continue
        if found:
            yield f"line {node.lineno} of {os.path.basename(file)}, `{ast.unparse(node)}`"
