"""What the recipe rlhf reads: prompts and answers of pairs, its YAML files, and the commands on its page."""

import re
from pathlib import Path

import pytest
import yaml
from datasets import Dataset
from trl import TrlParser

from grpo_ext.cli import parse
from grpo_ext.data.preferences import preference_pairs
from grpo_ext.recipes.reward_model import RewardModelArguments
from grpo_ext.recipes.rlhf_run import BASE, QUICKSTART, RLHFArguments
from grpo_ext.recipes.rlhf_stages import prompts_of
from grpo_ext.recipes.supervised import chosen_answers

ROOT = Path(__file__).resolve().parents[2]
YAMLS = sorted((ROOT / "recipes" / "rlhf").glob("*.yaml"))


def test_what_the_stages_read() -> None:
    pairs = preference_pairs("train", 300)
    prompts = prompts_of(pairs)
    assert len({str(prompt) for prompt in pairs["prompt"]}) == len(prompts) < 300
    assert prompts.column_names == ["prompt", "answer"]
    firsts = list(dict.fromkeys(map(str, pairs["prompt"])))
    assert list(map(str, prompts["prompt"])) == firsts
    user, assistant = ({"role": role, "content": role} for role in ("user", "assistant"))
    long = Dataset.from_list([{"prompt": [user], "chosen": [assistant, user, {**assistant, "content": "end"}]}])
    (row,) = chosen_answers(long)
    assert row == {"prompt": [user, assistant, user], "solution": "end"}


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_every_yaml_parses_to_what_it_says(path: Path, tmp_path: Path) -> None:
    given = ["--config", str(path), "--output_dir", str(tmp_path), "--use_cpu", "true", "--bf16", "false"]
    args, config = parse(RLHFArguments, given, BASE)
    for key, value in yaml.safe_load(path.read_text()).items():
        if key not in ("output_dir", "use_cpu", "bf16"):
            assert getattr(args if key in RLHFArguments.__dataclass_fields__ else config, key) == value, key
    first, *_ = path.read_text().splitlines()
    assert first == f"# python -m grpo_ext.recipes.rlhf --config {path.relative_to(ROOT)}"


def test_what_runs_without_a_file_is_the_cpu_file() -> None:
    values = yaml.safe_load((ROOT / "recipes" / "rlhf" / "smollm2_cpu.yaml").read_text())
    assert {name: values[name] for name in QUICKSTART if name != "output_dir"} == {
        name: value for name, value in QUICKSTART.items() if name != "output_dir"
    }


def test_the_pages_commands_parse(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "how-to" / "rlhf.md").read_text()
    cpu = ["--output_dir", str(tmp_path), "--use_cpu", "true", "--bf16", "false"]
    seen = []
    for block in re.findall(r"```bash\n(.*?)```", page, re.DOTALL):
        python, _, module, *given = block.replace("\\\n", " ").split()
        assert python == "python"
        seen.append(module.rpartition(".")[2])
        if seen[-1] == "rlhf":
            parse(RLHFArguments, [*given, *cpu], BASE)
        else:
            TrlParser((RewardModelArguments,)).parse_args_and_config(args=given)
    assert seen == ["rlhf", "rlhf", "reward_model", "reward_model"]
