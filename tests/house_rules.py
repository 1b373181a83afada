"""The house rules as checks on syntax trees. Each check yields one line of text for one violation."""

import ast
import importlib.util
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "grpo_ext"

# A room is a module or folder of grpo_ext. It may import its own level and the ones below.
LEVELS = {
    "ops": 0,
    "flags": 0,
    "yaml_file": 0,
    "folders": 0,
    "files": 0,
    "checkpoints": 0,
    "visible": 0,
    "trust": 0,
    "groups": 0,
    "randomness": 0,
    "backends": 0,
    "faults": 0,
    "objective": 1,
    "presets": 1,
    "rewards": 1,
    "data": 1,
    "scoring": 1,
    "rollouts": 2,
    "config": 2,
    "models": 2,
    "compat": 2,
    "trainer": 3,
    "checks": 1,
    "health": 1,
    "callbacks": 3,
    "evaluation": 4,
    "report": 4,
    "hub": 4,
    "doctor": 4,
    "bench": 5,
    "recipes": 5,
    "launch": 5,
    "cli": 5,
    "plan": 5,
    "__main__": 5,
}
# The facade imports rooms lazily. What a user would write may import it, the rooms below only the version number.
FACADE = "__init__"
FACADE_LEVEL = 5
FACADE_NAMES = {"__version__"}

HOSTS = {"trl", "transformers", "accelerate", "peft", "unsloth", "unsloth_zoo", "vllm"}
# Names that TRL or transformers.Trainer keep private and that our subclass calls or reads on itself all the same.
ALLOWED_HOOKS = {
    "_buffered_inputs",
    "_calculate_rewards",
    "_compute_loss",
    "_generate",
    "_generate_and_score_completions",
    "_generate_single_turn",
    "_load_optimizer_and_scheduler",
    "_logs",
    "_get_eval_sampler",
    "_get_grad_norm",
    "_get_output_dir",
    "_get_per_token_logps_and_entropies",
    "_get_train_sampler",
    "_metrics",
    "_prepare_inputs",
    "_push_from_checkpoint",
    "_save_checkpoint",
    "_step",
    "_tokenize_prompts",
}
HOST_SOURCES = {
    "trl": ["trainer/base_trainer.py", "trainer/grpo_trainer.py"],
    "transformers": ["trainer.py"],
}

LINES = 320
MACHINE_PATH = re.compile(r"(?:^|[^\w.])/(?:tmp|root|work|home|Users)/[A-Za-z]")


def imports(tree: ast.Module, package: tuple[str, ...] = ()) -> Iterator[tuple[int, str, str]]:
    """(line, module, name) of each import, the name empty for `import module` and import_module("module").

    `package` holds the parts of the importing file's package, which relative imports start from.
    """
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name, "") for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                start = package[: len(package) - level + 1] if level else ()
                base = ".".join([*start, *([module] if module else [])])
                yield from ((node.lineno, base, alias.name) for alias in names)
            case ast.Call(
                func=ast.Attribute(attr="import_module") | ast.Name(id="import_module"),
                args=[ast.Constant(value=str(module)), *_],
            ):
                yield node.lineno, module, ""


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def package_of(path: Path) -> tuple[str, ...]:
    return path.relative_to(ROOT).parts[:-1]


def imported_rooms(tree: ast.Module, room: str, package: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """(line, room) of each import of another room. A name that grpo_ext/__init__.py exports counts as FACADE."""
    for line, module, name in imports(tree, package):
        root, *parts = [*module.split("."), name]
        if root == "grpo_ext" and parts[0] not in {room} | FACADE_NAMES:
            yield line, parts[0] if parts[0] in LEVELS else FACADE


def upward_imports(tree: ast.Module, room: str, package: tuple[str, ...]) -> Iterator[str]:
    if room == FACADE:
        return
    if room not in LEVELS:
        yield f"grpo_ext.{room} has no level: add it to LEVELS"
        return
    for line, target in imported_rooms(tree, room, package):
        if target == FACADE and LEVELS[room] < FACADE_LEVEL:
            yield f"line {line}: imports from the facade grpo_ext, import the name from its own room"
        elif target != FACADE and LEVELS[target] > LEVELS[room]:
            yield f"line {line}: {room} (level {LEVELS[room]}) imports {target} (level {LEVELS[target]})"


def beyond_torch(tree: ast.Module) -> Iterator[str]:
    for line, module, _ in imports(tree, ("grpo_ext", "ops")):
        root = module.partition(".")[0]
        if root not in {"torch", "grpo_ext"} | sys.stdlib_module_names:
            yield f"line {line}: ops imports {root}"


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """The rooms of one import cycle, the first one repeated at the end, or an empty list."""

    def walk(room: str, trail: list[str]) -> list[str]:
        if room in trail:
            return [*trail[trail.index(room) :], room]
        return next((found for target in sorted(graph.get(room, ())) if (found := walk(target, [*trail, room]))), [])

    return next((found for room in sorted(graph) if (found := walk(room, []))), [])


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def private_imports(tree: ast.Module) -> Iterator[str]:
    """Private parts of a host, or a module of TRL below its public top (`from trl import X` is public)."""
    for line, module, name in imports(tree):
        root, *parts = [*module.split("."), name]
        if root in HOSTS and any(map(is_private, parts)):
            yield f"line {line}: imports {module} {name}, private to {root}"
        elif root == "trl" and module != "trl":
            yield f"line {line}: imports {module}, below the public top of trl"


@cache
def host_private_names() -> frozenset[str]:
    """Every private method or attribute in the source of TRL's and transformers' trainers, as installed."""
    names: set[str] = set()
    for package, files in HOST_SOURCES.items():
        spec = importlib.util.find_spec(package)
        assert spec is not None and spec.origin is not None
        for file in files:
            for node in ast.walk(ast.parse((Path(spec.origin).parent / file).read_text(encoding="utf-8"))):
                match node:
                    case ast.Attribute(attr=name, value=ast.Name(id="self")) | ast.FunctionDef(name=name):
                        names.add(name)
    return frozenset(filter(is_private, names))


def private_attributes(tree: ast.Module, in_trainer: bool) -> Iterator[str]:
    """A private name read off something imported from a host, or a trainer's private name.

    On itself our trainer may use ALLOWED_HOOKS, and whatever name is not also one of the hosts' trainers.
    """
    from_hosts = {
        (alias.asname or alias.name).partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
        if (getattr(node, "module", None) or alias.name).partition(".")[0] in HOSTS
    }
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=owner, attr=name):
                pass
            case ast.Call(func=ast.Name(id="getattr" | "setattr"), args=[owner, ast.Constant(value=str(name)), *_]):
                pass
            case _:
                continue
        if not is_private(name):
            continue
        on_itself = ast.unparse(owner) in {"self", "cls", "super()"}
        if ast.unparse(owner).partition(".")[0] in from_hosts:
            yield f"line {node.lineno}: {ast.unparse(owner)}.{name} is private to its host"
        elif on_itself and in_trainer and name in host_private_names() - ALLOWED_HOOKS:
            yield f"line {node.lineno}: {name} belongs to the host's trainer and is not one of ALLOWED_HOOKS"
        elif not on_itself and name in host_private_names():
            yield f"line {node.lineno}: {ast.unparse(owner)}.{name} is private to the host's trainer"


def habits(tree: ast.Module) -> Iterator[str]:
    """hasattr(), and excepts that would also swallow a mistake of ours."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id="hasattr")):
                yield f"line {node.lineno}: hasattr()"
            case ast.ExceptHandler(type=None):
                yield f"line {node.lineno}: bare except"
            case ast.ExceptHandler(type=kind):
                caught = kind.elts if isinstance(kind, ast.Tuple) else [kind]
                if any(isinstance(name, ast.Name) and name.id in {"Exception", "BaseException"} for name in caught):
                    yield f"line {node.lineno}: except Exception"


def machine_paths(text: str) -> Iterator[str]:
    for number, line in enumerate(text.splitlines(), start=1):
        if MACHINE_PATH.search(line):
            yield f"line {number}: {line.strip()}"
