"""Our trainer on the class that Unsloth generates for GPUs: the same losses and gradients as on TRL's own class."""

import json
import re
from pathlib import Path
from typing import Any

import generated_runs
import pytest

from real_unsloth import finish, run, start

pytestmark = pytest.mark.unsloth
HERE = Path(__file__).parent
# Folders that the two sides are given for themselves
FOLDERS = {"output_dir", "logging_dir", "vllm_adapter_dir"}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("generated")
    runs = {
        side: start(folder / f"in_{side}", str(HERE / "generated_runs.py"), side, str(folder))
        for side in ("stock", "generated")
    }
    for side, process in runs.items():
        finish(process, folder / f"in_{side}")
    return {side: json.loads((folder / f"{side}.json").read_text()) for side in runs}


def largest(one: list[float], other: list[float], least: float) -> float:
    """Largest difference, relative to the value itself or to `least`, because a loss is near 0 by construction."""
    return max(abs(x - y) / max(abs(x), least) for x, y in zip(one, other, strict=True))


@pytest.mark.parametrize("name", generated_runs.CASES)
def test_equals_the_same_objective_on_stock_trl(name: str, found: dict[str, Any]) -> None:
    stock, generated = (found[side]["runs"][name] for side in ("stock", "generated"))
    assert len(stock["losses"]) == len(generated["losses"]) >= 4
    assert max(stock["norms"]) > 1e-3
    # VESPO's loss is a mean of terms of about 5
    least = 5.0 if name == "surrogate_gamma" else 0.1
    assert largest(stock["losses"], generated["losses"], least) <= 1e-5
    for mine, theirs in zip(generated["norms"], stock["norms"], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("name", generated_runs.NATIVE)
def test_native_objectives_run_unsloths_own_loss(name: str, found: dict[str, Any]) -> None:
    assert found["generated"]["runs"][name]["fused"]


@pytest.mark.parametrize("name", generated_runs.OWN)
def test_own_objectives_run_ours(name: str, found: dict[str, Any]) -> None:
    assert not found["generated"]["runs"][name]["fused"]


@pytest.mark.parametrize("name", generated_runs.CASES)
def test_the_effective_config_is_the_same(name: str, found: dict[str, Any]) -> None:
    stock, generated = (found[side]["runs"][name] for side in ("stock", "generated"))
    assert stock["config"].keys() == generated["config"].keys() >= {"beta", "loss_type", "optim", "seed"}
    for field in stock["config"].keys() - FOLDERS:
        assert generated["config"][field] == stock["config"][field], field
    assert generated["attributes"] == stock["attributes"]
    assert generated["side"] == "left"


def test_a_yaml_file_means_the_same(found: dict[str, Any]) -> None:
    stock, generated = (found[side]["yamls"] for side in ("stock", "generated"))
    assert stock.keys() == generated.keys() and len(stock) >= 5
    for name, fields in stock.items():
        for field in fields.keys() - FOLDERS:
            assert generated[name][field] == fields[field], f"{name}: {field}"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("fine", "passed"),
        ("honoured", "passed"),
        ("bypassed", "RuntimeError: .*ran the configured objective 0 times in place of once"),
        ("bypassed_own", "RuntimeError: .*ran the configured objective 0 times in place of once"),
        ("detached", "RuntimeError: The loss has no gradient"),
        ("picked_up", "TypeError: PickedUp has a method `_get_per_token_logps`"),
        ("name", "ValueError: `model` is the name .* which Unsloth's trainer cannot load"),
        ("peft_config", "ValueError: `peft_config` is given, which Unsloth's trainer drops"),
        ("stock_model", "ValueError: The policy is a PeftModel.* that Unsloth has not loaded"),
        ("pad_is_eos", "ValueError: The pad token .* also ends a completion"),
        ("tree", "ValueError: `scoring` is 'tree', but Unsloth's trainer"),
        ("engine", "ValueError: The policy carries a vLLM engine .* `use_vllm` False and `vllm_sync` None"),
    ],
)
def test_what_would_mean_something_else_is_refused(name: str, said: str, found: dict[str, Any]) -> None:
    assert re.match(said, found["generated"]["mistakes"][name]), found["generated"]["mistakes"][name]


def test_an_override_of_the_loss_is_honoured(found: dict[str, Any]) -> None:
    assert found["generated"]["mistakes"]["honoured_calls"] == "2"


@pytest.fixture(scope="module")
def with_engine(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("engine")
    return run(folder, "trainer/generated_vllm.py", VLLM_CPU_KVCACHE_SPACE="1")


@pytest.mark.parametrize("way", ["fused", "ours"])
def test_the_policys_own_engine_follows_it(way: str, with_engine: dict[str, Any]) -> None:
    found = with_engine[way]
    assert found["same_engine"]
    assert found["fused"] is (way == "fused")
    # Nats a token; with the adapter of the step before it would be 0.1 and more
    assert len(found["apart"]) == 3 and max(found["apart"]) < 1e-4
    assert min(found["norms"]) > 1e-3


def test_the_policys_own_engine_searches(with_engine: dict[str, Any]) -> None:
    assert with_engine["beams"]["same_engine"]
    assert min(with_engine["beams"]["norms"]) > 1e-3
