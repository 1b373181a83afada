"""The files of recipes/accelerate mean what they say to accelerate's own parser, launcher and plugins."""

import argparse
import shlex
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "recipes" / "accelerate"
FILES = sorted(FOLDER.glob("*.yaml"))
SECTIONS = ("fsdp_config", "deepspeed_config")


def parsed(path: Path, monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """What `accelerate launch` makes of the command in the first line of a file."""
    monkeypatch.chdir(ROOT)
    words = shlex.split(path.read_text().splitlines()[0].removeprefix("# "))
    assert words[:2] == ["accelerate", "launch"] and words[3] == str(path.relative_to(ROOT))
    return _validate_launch_command(launch_command_parser().parse_args(words[2:]))[0]


def test_all_kinds_are_there() -> None:
    assert [path.stem for path in FILES] == ["ddp", "ddp_cpu", "fsdp2", "zero2", "zero3"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_header_runs_with_the_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = yaml.safe_load(path.read_text())
    config = load_config_from_file(str(path))
    args = parsed(path, monkeypatch)
    assert args.num_processes == values["num_processes"] > 1
    assert (args.mixed_precision, args.use_cpu) == (values["mixed_precision"], values.get("use_cpu", False))
    kind = {"multi_gpu": args.multi_gpu, "use_fsdp": args.use_fsdp, "use_deepspeed": args.use_deepspeed}
    wanted = {"MULTI_GPU": "multi_gpu", "FSDP": "use_fsdp", "DEEPSPEED": "use_deepspeed"}
    assert [name for name, chosen in kind.items() if chosen] == [wanted[config.distributed_type.value]]
    assert args.training_script == "grpo_ext.recipes.gsm8k" and args.module
    assert args.training_script_args[0] == "--config" and (ROOT / args.training_script_args[1]).is_file()
    # accelerate takes a key that it does not know without a word
    known = vars(launch_command_parser().parse_args(["script.py"]))
    for section in SECTIONS:
        assert set(getattr(config, section)) == set(values.get(section, {})) <= set(known)


@pytest.mark.parametrize("cpu", [False, True])
def test_fsdp2(cpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    path = ROOT / "tests" / "trainer" / "fsdp2_cpu.yaml" if cpu else FOLDER / "fsdp2.yaml"
    environment = prepare_multi_gpu_env(parsed(path, monkeypatch))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
    assert plugin.state_dict_type.name == "SHARDED_STATE_DICT"
    assert plugin.cpu_ram_efficient_loading is not cpu
    assert plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"


@pytest.mark.parametrize("stage", [2, 3])
def test_zero(stage: int, monkeypatch: pytest.MonkeyPatch) -> None:
    args = parsed(FOLDER / f"zero{stage}.yaml", monkeypatch)
    args.deepspeed_fields_from_accelerate_config = ""
    for name, value in prepare_deepspeed_cmd_env(args)[1].items():
        monkeypatch.setenv(name, value)
    plugin = DeepSpeedPlugin()
    assert plugin.zero_stage == stage
    assert (plugin.gradient_accumulation_steps, plugin.gradient_clipping) == ("auto", "auto")
    assert (plugin.offload_optimizer_device, plugin.offload_param_device) == ("none", "none")
    assert (plugin.zero3_init_flag, plugin.zero3_save_16bit_model) == (stage == 3, stage == 3)
