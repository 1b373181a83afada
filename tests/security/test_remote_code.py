"""Code that comes with a model does not run, whatever opens the model, unless `trust_remote_code` was given."""

from pathlib import Path
from typing import Any

import pytest
from transformers import dynamic_module_utils
from untrusted import with_code
from ways_in import BY_NAME, OTHERS, POLICY, TOKENIZERS, small, solving, words

from grpo_ext.cli import parse, parse_alone
from grpo_ext.data.preferences import load_preferences
from grpo_ext.evaluation.subjects import load, subject_named
from grpo_ext.models import load_policy
from grpo_ext.recipes import evaluate
from grpo_ext.recipes.arguments import DEFAULTS, RecipeArguments
from grpo_ext.recipes.grpo import open_policy
from grpo_ext.recipes.process_reward import ProcessRewardArguments
from grpo_ext.recipes.sampled import open_sampler

WITH_FLAG: dict[str, Any] = {
    "load_policy": lambda folder, out: load_policy(folder, dtype="float32", lora_r=0, trust_remote_code=True),
    "evaluation": lambda folder, out: load(subject_named(str(folder)), "float32", trust_remote_code=True),
    "recipe evaluate": lambda folder, out: evaluate.main(
        [str(folder), *words(task="arithmetic", problems=1, max_completion_length=2, output_dir=out, dtype="float32"),
         "--trust_remote_code"]
    ),
    "recipe gsm8k": lambda folder, out: open_policy(
        *parse(RecipeArguments, [*small(folder, out), "--trust_remote_code", "true"], DEFAULTS)
    ),
    "recipe process_reward": lambda folder, out: open_sampler(
        parse_alone(ProcessRewardArguments, [*solving(folder, out), "--trust_remote_code", "true"])
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers copies the code that it is to run into a folder of the user's."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))


@pytest.mark.parametrize("name", [*POLICY, *OTHERS, *BY_NAME])
def test_code_of_an_architecture_does_not_run(name: str, base: Path, mark: Path, tmp_path: Path) -> None:
    folder = with_code(base, tmp_path / "model", mark)
    with pytest.raises((ValueError, OSError), match="trust_remote_code"):
        {**POLICY, **OTHERS, **BY_NAME}[name](folder, tmp_path / "out")


@pytest.mark.parametrize("name", TOKENIZERS)
def test_code_of_a_tokenizer_does_not_run(name: str, base: Path, mark: Path, tmp_path: Path) -> None:
    folder = with_code(base, tmp_path / "model", mark, tokenizer=True)
    with pytest.raises((ValueError, OSError), match="trust_remote_code"):
        TOKENIZERS[name](folder, tmp_path / "out")


@pytest.mark.parametrize("name", WITH_FLAG)
def test_with_the_flag_it_runs(name: str, base: Path, tmp_path: Path) -> None:
    folder = with_code(base, tmp_path / "model", tmp_path / "ran")
    WITH_FLAG[name](folder, tmp_path / "out")
    assert (tmp_path / "ran").read_text() == "ran"


def test_the_sentence_names_the_flag_and_the_model(base: Path, mark: Path, tmp_path: Path) -> None:
    folder = with_code(base, tmp_path / "model", mark)
    with pytest.raises(ValueError, match=r"^`model` '.*model' needs code that comes with it, which does not run"):
        load_policy(folder, dtype="float32", lora_r=0)
    with pytest.raises(ValueError, match=r"never runs for such a model, as `trust_remote_code` is for the policy;"):
        OTHERS["load_reward_model"](folder, tmp_path)


def test_a_data_set_that_is_a_script_does_not_run(mark: Path, tmp_path: Path) -> None:
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / "pairs.py").write_text(f"from pathlib import Path\nPath({str(mark)!r}).write_text('ran')\n")
    with pytest.raises(FileNotFoundError, match="scripts are no longer supported"):
        load_preferences(str(tmp_path / "pairs"))
