"""A recipe's command line: which layer wins, and what a wrong value is answered with."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from grpo_ext.cli import parse
from grpo_ext.flags import names_a_run
from grpo_ext.plan import memory
from grpo_ext.plan.memory import Load
from grpo_ext.plan.shape import find_shape
from grpo_ext.presets import PRESETS
from grpo_ext.recipes.grpo import DEFAULTS, RecipeArguments
from grpo_ext.recipes.gsm8k import QUICKSTART

ROOT = Path(__file__).resolve().parents[2]
# Those of the recipe rlhf have fields of their own, see test_rlhf_words.py
YAMLS = [path for path in sorted((ROOT / "recipes").rglob("*.yaml")) if path.parent.name not in ("rlhf", "accelerate")]
# What rewards steps, and rounds
VARIANTS = {"outcome": (None, 1), "process": ("model", 1), "iterative": (None, 2)}
CPU = ["--use_cpu", "true", "--bf16", "false"]


def read(*argv: str, defaults: dict | None = None):
    return parse(RecipeArguments, [*argv, *CPU], {**DEFAULTS, **(defaults or {})})


def test_flag_over_file_over_preset_over_default(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("epsilon: 0.5\nlora_r: 4\n")
    common = ["--output_dir", str(tmp_path)]
    assert read(*common)[1].epsilon == 0.2
    assert read(*common, "--preset", "gspo")[1].epsilon == PRESETS["gspo"]["epsilon"]
    args, config = read(*common, "--preset", "gspo", "--config", str(file))
    assert (config.epsilon, config.epsilon_high, args.lora_r) == (0.5, PRESETS["gspo"]["epsilon_high"], 4)
    assert read(*common, "--preset=gspo", f"--config={file}", "--epsilon", "0.1")[1].epsilon == 0.1


def test_a_beginning_of_a_flag_is_none(tmp_path: Path) -> None:
    # The layers are read by whole names: an abbreviated preset would be a name without its values
    with pytest.raises(ValueError, match=r"`--pres` is no flag of this recipe; did you mean --preset\?"):
        read("--output_dir", str(tmp_path), "--pres", "dapo")


@pytest.mark.parametrize("word", ["--config", "--model_name_or_path=x", "--model-name-or-path"])
def test_what_is_no_quickstart(word: str) -> None:
    assert names_a_run(["--seed", "1", word, "x"]) and not names_a_run(["--seed", "1", "--preset", "gspo"])


def test_preset_named_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("preset: gmpo\n")
    args, config = read("--config", str(file), "--output_dir", str(tmp_path))
    assert (args.preset, config.surrogate, config.objective().aggregation) == (
        "gmpo",
        "geometric",
        "seq_mean_token_mean",
    )


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_on_the_quickstart(name: str, tmp_path: Path) -> None:
    _, config = read("--preset", name, "--output_dir", str(tmp_path), defaults=QUICKSTART)
    for key, value in PRESETS[name].items():
        assert getattr(config, key) == value, key
    assert config.num_generations == QUICKSTART["num_generations"]


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_every_yaml_parses_to_what_it_says(path: Path, tmp_path: Path) -> None:
    args, config = read("--config", str(path), "--output_dir", str(tmp_path))
    for key, value in yaml.safe_load(path.read_text()).items():
        if key not in ("output_dir", "use_cpu"):
            assert getattr(args if key in RecipeArguments.__dataclass_fields__ else config, key) == value, key
    first, *_ = path.read_text().splitlines()
    assert first == f"# python -m grpo_ext.recipes.{path.parent.name} --config {path.relative_to(ROOT)}"


@pytest.mark.parametrize("kind", VARIANTS)
def test_deepseekmath_yaml_is_the_paper(kind: str, tmp_path: Path) -> None:
    path = ROOT / "recipes" / "deepseekmath" / f"{kind}.yaml"
    args, config = read("--config", str(path), "--output_dir", str(tmp_path))
    # An adapter takes a larger step
    assert config.learning_rate == (1e-5 if args.lora_r else 1e-6)
    assert (config.num_generations, config.beta, config.max_completion_length) == (64, 0.04, 1024)
    rows = config.per_device_train_batch_size * config.gradient_accumulation_steps
    # One update for all generations of a step
    assert (8 * rows, config.num_iterations) == (1024, 1)
    assert config.gradient_accumulation_steps % config.steps_per_generation == 0
    assert (config.use_bias_correction_kl, config.loss_type, config.scale_rewards) == (False, "grpo", "group")
    assert (args.dataset, args.eval_datasets) == ("gsm8k+math", ["gsm8k", "math", "cmath"])
    assert (config.process_reward, config.num_rounds) == VARIANTS[kind]
    if config.num_rounds > 1:
        assert (args.reward_funcs, args.reward_replay, args.reward_learning_rate) == ([], 0.1, 2e-5)


@pytest.mark.parametrize("kind", VARIANTS)
def test_deepseekmath_yaml_fits_eight_gpus_of_80_gb(kind: str, tmp_path: Path) -> None:
    path = ROOT / "recipes" / "deepseekmath" / f"{kind}.yaml"
    args, config = read("--config", str(path), "--output_dir", str(tmp_path))
    shape = find_shape(args.model_name_or_path)
    _, second, *_ = path.read_text().splitlines()
    assert second.startswith("# accelerate launch --config_file recipes/accelerate/")
    # One process alone cannot make half a group
    parts_of_a_step = int(re.findall(r"--steps_per_generation (\d)", second)[0]) if config.process_reward else 4
    assert config.steps_per_generation == 4
    rows = config.per_device_train_batch_size * parts_of_a_step
    sizes = {"rank": args.lora_r, "reference": True, "group": 64, "generated": rows, "completion_tokens": 1024}
    load = Load(dtype=args.dtype, **sizes)
    held = memory.weights(shape, load) + sum(memory.trained(shape, load).values())
    # FSDP2 cuts these up, and puts 16-bit weights together to generate; DDP holds them, and the reward model
    low = memory.weights(shape, replace(load, dtype="bfloat16"))
    held = held + low if args.lora_r else held / 8 + low
    cache = memory.generation(shape, replace(load, dtype="bfloat16"))
    # Saved by its recipe in float32, and whole on each
    scorer = memory.weights(shape, replace(load, dtype="float32")) if config.process_reward == "model" else 0.0
    assert held + cache + scorer + memory.RUNTIME["cuda"] < 76e9
    found = [int(size) for size in re.findall(r"(\d+) GB of\b", path.read_text())]
    parts = [scorer, held - low, low, cache] if scorer else [held - low, low, cache]
    assert found[-len(parts) :] == [round(part / 1e9) for part in parts]


def test_no_two_recipes_write_the_same_folder() -> None:
    folders = [yaml.safe_load(path.read_text())["output_dir"] for path in YAMLS]
    assert len(folders) == len(set(folders)) and len(folders) == len(YAMLS)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("lerning_rate: 1\n", ["lerning_rate", "learning_rate"]),
        ("loss_type: foo\n", ["loss_type", "foo", "dapo"]),
        ("surrogate: foo\n", ["surrogate", "foo", "geometric"]),
        ("preset: gsp\n", ["preset", "gsp", "gspo"]),
        ("dataset: mnist\n", ["dataset", "mnist", "gsm8k"]),
        ("reward_funcs: [correct, fun]\n", ["reward_funcs", "fun", "correct_strict"]),
        ("- a\n", ["config", "list"]),
        ("a: [\n", ["config", "not YAML"]),
    ],
)
def test_wrong_file_gets_one_sentence(content: str, named: list[str], tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(content)
    with pytest.raises(ValueError) as caught:
        read("--config", str(file), "--output_dir", str(tmp_path))
    assert all(word in str(caught.value) for word in named), str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_the_process_answers_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "grpo_ext.recipes.gsm8k", "--preset", "nonsense", "--output_dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert re.search(r"^error: `preset` is 'nonsense'; .*gspo", done.stderr, re.MULTILINE)


def test_help_names_every_choice(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        read("--help")
    assert done.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for word in [*PRESETS, "sequence_sum", "group_eps_inside", "k3_corrected", "ziegler", "leave_one_out"]:
        assert word in text
