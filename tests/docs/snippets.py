"""The fenced blocks of the pages, and the commands in them."""

import re
import shlex
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from reference_pages import PARSERS, RECIPES
from trl import TrlParser

from grpo_ext.cli import parse
from grpo_ext.config import GRPOExtConfig
from grpo_ext.recipes.arguments import DEFAULTS

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^( *)```(\w*)(?: title=\"([^\"]+)\")?\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
# Commands that hand the words which they do not know to the recipe gsm8k
PASS_ON = ("grpo-ext plan", "python -m grpo_ext.recipes.compare")
# Where no GPU is
CPU = ["--use_cpu", "true", "--bf16", "false"]


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the file that it is, if it is one, and its text."""

    language: str
    title: str | None
    text: str


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page in order."""
    text = page.read_text(encoding="utf-8")
    found = FENCE.findall(text)
    fences = re.findall(r"^ *```", text, re.MULTILINE)
    assert len(fences) == 2 * len(found), f"{page.name} has a fence that is not understood"
    return [Block(language, title or None, body) for _, language, title, body in found]


def lines(block: Block) -> list[str]:
    """The lines of a shell block, those that go on joined, comments left out."""
    joined = re.sub(r"\\\n\s*", "", block.text)
    kept = [re.sub(r"(^|\s)#(?!SBATCH).*", "", line).strip() for line in joined.splitlines()]
    return [line for line in kept if line]


# What a line of a shell block begins with -> what is checked of it


def _make(line: str) -> None:
    targets = re.findall(r"^([\w -]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    (target, *_) = shlex.split(line)[1:]
    assert target in " ".join(targets).split(), target


def _pip(line: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for extras in re.findall(r"grpo[_-]ext\[([\w,]+)\]", line):
        assert set(extras.split(",")) <= set(project["optional-dependencies"]), extras


def _file(line: str) -> None:
    assert (ROOT / line.split()[1]).is_file(), line


def _paths(line: str) -> None:
    found = re.findall(r"\b(?:tests|recipes|\.ci)/[\w./-]+", line)
    assert all((ROOT / path).exists() for path in found), line


def _nothing(line: str) -> None:
    """Other programs' words, and the shell's."""


KINDS: dict[str, Callable[[str], None]] = {
    r"make ": _make,
    r"(\.venv/bin/)?python -m pip |pip install": _pip,
    r"python -m grpo_ext|grpo-ext ": _nothing,  # all of them are parsed, see `commands`
    r"(\.venv/bin/)?python -m pytest|bash \.ci/run|git apply": _paths,
    r"python (?!-m)\S+\.py$": _file,
    r"(VLLM_\w+=\S+ )*(vllm serve|python -m vllm\.)": _nothing,
    r"(torchrun|accelerate launch|srun|sbatch|scontrol) ": _paths,
    r"(export|unset) \w+|\w+=\S+$|cd |mkdir |awk |grep |\. \.venv/": _nothing,
    r"(until|for|while|if|then|do|done|fi|\[)\b|\[ |#SBATCH": _nothing,
}
COMMAND = re.compile(r"(?<!\S)(python -m grpo_ext[\w.]*|grpo-ext)(?!\S)((?: [^\n;|&]*)?)")


def check_line(line: str) -> None:
    """Whether a line of a shell block is of a known kind, and what its kind asks for."""
    found = [check for pattern, check in KINDS.items() if re.match(pattern, re.sub(r"^([A-Z_]+=\S+ )+", "", line))]
    assert found, f"no kind of command is known for: {line}"
    for check in found:
        check(re.sub(r"^([A-Z_]+=\S+ )+", "", line))


def flags_of_ours() -> set[str]:
    """Every flag that one of our commands takes."""
    fields = {name for cls, _ in RECIPES.values() for name in cls.__dataclass_fields__}
    named = {f"--{name}" for name in fields | set(GRPOExtConfig.__dataclass_fields__)}
    made = (import_module(module).parser() for module in PARSERS.values())
    return named | {"--config"} | {option for parser in made for option in parser._option_string_actions}


def commands(block: Block) -> list[list[str]]:
    """The words of each command of ours in a shell block; a shell variable counts as 8."""
    launched = r"\b(accelerate launch|torchrun)\b[^\n]*? -m grpo_ext"
    # What pip is told to install is no command
    text = "\n".join(line for line in lines(block) if not line.startswith("pip "))
    found = COMMAND.findall(re.sub(launched, "python -m grpo_ext", text))
    return [shlex.split(re.sub(r"\"?\$\{?\w+\}?\"?", "8", start + rest)) for start, rest in found]


def check_command(words: Sequence[str]) -> None:
    """Read a command with the parser that would read it, and look for the recipes' files that it names."""
    for word in words:
        assert not word.startswith("recipes/") or (ROOT / word).is_file(), word
    if words[:3] == ["python", "-m", "grpo_ext"]:
        words = ["grpo-ext", *words[3:]]
    name = next((name for name in PARSERS if list(words[: len(name.split())]) == name.split()), None)
    if name in PASS_ON:
        _, rest = import_module(PARSERS[name]).parser().parse_known_args(words[len(name.split()) :])
        read_recipe("gsm8k", ["--config", rest[0], *rest[1:]] if rest and not rest[0].startswith("--") else rest)
    elif name is not None:
        import_module(PARSERS[name]).parser().parse_args(words[len(name.split()) :])
    elif words[0] == "grpo-ext":
        raise AssertionError(f"there is no such command: {' '.join(words)}")
    else:
        read_recipe(words[2].rpartition(".")[2], list(words[3:]))


def own_files(argv: Sequence[str]) -> None:
    """Make the files of problems that a command names, empty; the tests stand in an empty folder."""
    for path in (Path(word) for word in argv if word.endswith(".jsonl")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def read_recipe(name: str, argv: list[str]) -> None:
    """Read the words after a recipe's name; a YAML file that is not there is left out."""
    cls, with_config = RECIPES[name]
    if "--help" in argv:
        return
    own_files(argv)
    if "--config" in argv:
        at = argv.index("--config")
        path = next((place for place in (Path(argv[at + 1]), ROOT / argv[at + 1]) if place.is_file()), None)
        argv[at : at + 2] = [] if path is None else ["--config", str(path)]
    if with_config:
        # One process reads what several would run
        parse(cls, [*argv, *([] if "--output_dir" in argv else ["--output_dir", "unused"]), *CPU], dict(DEFAULTS))
    else:
        TrlParser((cls,)).parse_args_into_dataclasses(args=argv)
