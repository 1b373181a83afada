"""The names of Unsloth that we rely on: in the wheels of the tested version, and in what is installed."""

from pathlib import Path

import pytest
from host_contract import from_wheel, installed, wheel
from unsloth_contract import UNSLOTH, unsloth_files, unsloth_violations

ROOT = Path(__file__).resolve().parents[2]
PINS = (ROOT / ".ci" / "unsloth-vllm.txt").read_text(encoding="utf-8").splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("package", UNSLOTH)
def test_wheels_of_unsloth(package: str, tmp_path: Path) -> None:
    (version,) = [line.removeprefix(f"{package}==") for line in PINS if line.startswith(f"{package}==")]
    host = from_wheel(wheel(package, version, tmp_path), package)
    found = list(unsloth_violations(package, host))
    assert found == [], f"{package} {version}: {'; '.join(found)}"


@pytest.mark.unsloth
@pytest.mark.parametrize("package", UNSLOTH)
def test_what_is_installed(package: str) -> None:
    assert list(unsloth_violations(package, installed(package, unsloth_files(package)))) == []


def test_a_changed_host_fails_in_one_line() -> None:
    loader = "class FastCPUModel:\n    def from_pretrained(model_name, **kwargs): ...\n"
    text = f"{loader}    def get_peft_model(): ...\n_disable_bnb_cpu_weight_packing(model)"
    found = list(unsloth_violations("unsloth_zoo", {"cpu/loader.py": text, "compiler.py": "UNSLOTH_RETURN"}))
    assert found[0].startswith("unsloth_zoo: FastCPUModel.from_pretrained takes no max_seq_length, dtype")
    assert found[1].startswith("unsloth_zoo: FastCPUModel.get_peft_model takes no r, target_modules")
    assert "compiler.py has nothing like" in found[2] and "generated source" in found[2]
    assert len(found) == 4 and not any("\n" in line for line in found)
    assert next(unsloth_violations("unsloth_zoo", {})) == "unsloth_zoo has no cpu/loader.py"
