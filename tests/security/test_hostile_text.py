"""Text of a stranger is read as text: YAML makes no objects, and no message gives orders to a terminal."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from grpo_ext import __main__
from grpo_ext.backends import named_backend
from grpo_ext.cli import parse
from grpo_ext.launch import run
from grpo_ext.recipes import process_reward, reward_model
from grpo_ext.recipes.arguments import DEFAULTS, RecipeArguments

ORDERS = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202egnp"
READERS: dict[str, Callable[[list[str]], object]] = {
    "a recipe": lambda words: parse(RecipeArguments, words, DEFAULTS),
    "recipe reward_model": reward_model.main,
    "recipe process_reward": process_reward.main,
}


def hostile_yaml(folder: Path, mark: Path) -> list[str]:
    path = folder / "config.yaml"
    path.write_text(f"seed: !!python/object/apply:os.mkdir ['{mark}']\n")
    return ["--config", str(path)]


@pytest.mark.parametrize("reader", READERS)
def test_yaml_makes_no_objects(reader: str, mark: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`--config` '.*config\.yaml' is not YAML.*python/object/apply") as error:
        READERS[reader]([*hostile_yaml(tmp_path, mark), "--output_dir", str(tmp_path / "out")])
    assert "\n" not in str(error.value)


def test_yaml_makes_no_objects_before_parsing_either(mark: Path, tmp_path: Path) -> None:
    assert named_backend(hostile_yaml(tmp_path, mark)) == "transformers"


@pytest.mark.parametrize("reader", READERS)
def test_yaml_sets_no_environment(reader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    (tmp_path / "config.yaml").write_text("env:\n  LD_PRELOAD: evil.so\n")
    with pytest.raises(ValueError, match=r"`env` in '.*' is not supported"):
        READERS[reader](["--config", str(tmp_path / "config.yaml"), "--output_dir", str(tmp_path / "out")])


def visible_alone(said: str) -> bool:
    return "owned" in said and not {"\x1b", "\x07", "\x9b", "\u202e"} & set(said)


def test_a_recipes_messages_give_no_orders(capsys: pytest.CaptureFixture[str]) -> None:
    def main(argv: Sequence[str]) -> int:
        logging.getLogger("grpo_ext").warning("row %s", ORDERS)
        raise ValueError(f"a row holds {ORDERS}")

    logger = logging.getLogger("grpo_ext")
    before = list(logger.handlers), logger.level
    try:
        with pytest.raises(SystemExit):
            run(main)
    finally:
        logger.handlers, logger.level = before
    said = capsys.readouterr()
    assert visible_alone(said.err) and visible_alone(said.out)


def test_a_commands_errors_give_no_orders(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert __main__.main(["report", str(tmp_path / ORDERS)]) == 2
    assert visible_alone(capsys.readouterr().err)
