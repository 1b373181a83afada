"""Every block of the pages is of a known kind; commands are parsed, and README and tutorials are run."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from snippets import CPU, FENCE, PAGES, ROOT, Block, blocks, check_command, check_line, commands, flags_of_ours, lines

from grpo_ext.models import tiny_policy
from grpo_ext.recipes import grpo as shared_run

# What a run of a page is cut down to
LIMITS = {
    "max_steps": 1,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "max_completion_length": 8,
    "train_size": 16,
    "eval_size": 4,
    "sft_steps": 1,
    "sft_batch_size": 4,
    "dtype": "float32",
    "sample_every": 0,
}
DOCS = ROOT / "docs"
# Beside README and tutorials, the pages that show something by running it
SHOWN = ["explanation/kl", "explanation/loss_is_zero", "explanation/beams", "explanation/tree", "how-to/from-trl"]
EXECUTED = [ROOT / "README.md", *sorted((DOCS / "tutorials").glob("*.md")), *(DOCS / f"{name}.md" for name in SHOWN)]
# They train; the first one also evaluates and reports, the second one edits a copy of the checkout
SLOW = {"first_run", "your_objective", "your_reward", "from-trl"}
RUN = [pytest.param(page, marks=[pytest.mark.slow] * (page.stem in SLOW), id=page.stem) for page in EXECUTED]


def compiles(block: Block) -> None:
    compile(block.text, "block", "exec")


def shell(block: Block) -> None:
    for line in lines(block):
        check_line(line)
    for words in commands(block):
        check_command(words)


# Language of a block -> what holds for it on every page; text is what a command prints
LANGUAGES: dict[str, Callable[[Block], object]] = {
    "python": compiles,
    "bash": shell,
    "yaml": lambda block: yaml.safe_load(block.text),
    "json": lambda block: [json.loads(line) for line in block.text.splitlines()],
    "diff": lambda block: block.text.index("@@"),
    "text": lambda block: None,
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_is_of_a_known_kind(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = blocks(page)
    for block in found:
        assert block.language in LANGUAGES, f"{block.language!r}: {block.text}"
        if block.language == "yaml" and (name := re.match(r"# ([\w-]+\.yaml)\n", block.text)):
            Path(name[1]).write_text(block.text, encoding="utf-8")
    # What a page does to the code, its commands need
    changed = any(block.language == "diff" for block in found)
    for block in found:
        if not changed or block.language != "bash":
            LANGUAGES[block.language](block)


@pytest.mark.parametrize(
    "text",
    ["curl http://example.org", "make dinner", "grpo-ext dance", 'pip install "grpo_ext[no_such_extra]"',
     "python -m grpo_ext.recipes.gsm8k --no_such_flag 1", "python -m grpo_ext.recipes.gsm8k --surrogate none_such",
     "python -m grpo_ext.recipes.gsm8k --config recipes/none.yaml", "python -m grpo_ext.bench step --gruop_size 8"],
)  # fmt: skip
def test_a_wrong_command_is_found(text: str) -> None:
    with pytest.raises((AssertionError, SystemExit, ValueError)):
        shell(Block("bash", None, text))


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_of_the_files_at_the_top_lead_somewhere(name: str) -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]+)", (ROOT / name).read_text(encoding="utf-8"))
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_names_are_there(page: Path) -> None:
    named = re.findall(r"`((?:grpo_ext|tests|recipes|examples|\.ci)/[\w./-]+)`", page.read_text(encoding="utf-8"))
    assert [path for path in named if not (ROOT / path).exists()] == []


# Flags of other programs that the text of a page names
OTHERS = {
    "accelerate": ["--num_processes", "--num_machines", "--machine_rank", "--main_process_ip"],
    "docker": ["--security-opt"],
    "vllm": ["--api-server-count", "--max-logprobs", "--enable-lora", "--tensor-parallel-size"],
}


def test_flags_that_a_text_names_are_there() -> None:
    known = flags_of_ours() | {flag for flags in OTHERS.values() for flag in flags}
    unknown = {
        (str(page.relative_to(ROOT)), flag)
        for page in PAGES
        for code in re.findall(r"`([^`\n]+)`", FENCE.sub("", page.read_text(encoding="utf-8")))
        for flag in re.findall(r"(?<!\S)--[a-z][\w-]*", code)
        if flag not in known
    }
    assert unknown == set()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    for part in tiny_policy(seed=0):
        part.save_pretrained(folder)
    return folder


def limited(words: list[str], **more: object) -> list[str]:
    """A command whose run ends in seconds."""
    if words[:2] != ["python", "-m"] or not words[2].startswith("grpo_ext.recipes.") or "evaluate" in words[2]:
        return words
    options = {**LIMITS, **more}
    return [*words, *(word for key, value in options.items() for word in (f"--{key}", str(value))), *CPU]


def run_here(words: list[str]) -> None:
    """A command of ours in this process."""
    if words[0] == "grpo-ext":
        assert import_module("grpo_ext.__main__").main(words[1:]) == 0
    else:
        assert import_module(words[2]).main(limited(words)[3:]) == 0


class Checkout:
    """A copy of the package and its tests, which a page may edit."""

    def __init__(self, folder: Path, tiny: Path) -> None:
        self.folder, self.tiny = folder / "checkout", tiny
        for name in ("grpo_ext", "tests"):
            shutil.copytree(ROOT / name, self.folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", self.folder)

    def apply(self, block: Block) -> None:
        subprocess.run(["git", "apply", "-"], input=block.text, text=True, cwd=self.folder, check=True)

    def run(self, line: str) -> None:
        words, _, rest = line.partition(" | ")
        command = [sys.executable if word == "python" else word for word in self._words(shlex.split(words))]
        shown = " | ".join(filter(None, [shlex.join(command), rest]))
        environment = {**os.environ, "PYTHONPATH": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", shown], cwd=self.folder, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"

    def _words(self, words: list[str]) -> list[str]:
        if words[0] == "grpo-ext":
            return ["python", "-m", "grpo_ext", *words[1:]]
        if "--help" in words:
            return words
        return limited(words, model_name_or_path=self.tiny, dataset="arithmetic")


@pytest.mark.parametrize("page", RUN)
def test_the_page_runs(page: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(shared_run, "resolve_model", lambda name: str(tiny))
    names: dict[str, Any] = {}
    found = blocks(page)
    checkout = Checkout(tmp_path, tiny) if any(block.language == "diff" for block in found) else None
    for block in found:
        if block.language == "diff":
            assert checkout is not None
            checkout.apply(block)
        elif block.title is not None:
            Path(block.title).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            exec(compile(block.text, f"{page.name}", "exec"), names)
        elif block.language == "bash" and checkout is not None:
            for line in lines(block):
                checkout.run(line)
        elif block.language == "bash":
            for words in commands(block):
                run_here(words)
