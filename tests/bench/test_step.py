"""The step benchmark: its rollouts, and one run of both sides on the smallest model."""

import json
from typing import Any

import pytest
import torch
import trl
from packaging.version import Version

from grpo_ext.bench.__main__ import main
from grpo_ext.bench.rollouts import synthetic


def rollouts(**fields: Any) -> Any:
    usual = {
        "prompts": 2, "group_size": 8, "prompt_length": 5, "mean": 10, "cap": 40, "shared": 0.0, "vocabulary": 100,
        "seed": 0,
    }  # fmt: skip
    return synthetic(**{**usual, **fields})


def test_groups_share_their_prompt_and_one_row_is_at_the_cap() -> None:
    made = rollouts()
    assert [len(p) for p in made.prompts] == [5] * 16
    assert made.prompts[0] == made.prompts[7] != made.prompts[8]
    lengths = [len(c) for c in made.completions]
    assert max(lengths) == 40 and lengths.count(40) == 1 and min(lengths) >= 1
    assert made == rollouts() and made != rollouts(seed=1)


def test_shared_beginnings() -> None:
    made = rollouts(shared=0.7, mean=100, cap=100)
    for group in (made.completions[:8], made.completions[8:]):
        for index, row in enumerate(group[1:], start=1):
            kept = int(0.7 * len(row))
            longer = [other for other in group[:index] if len(other) >= kept]
            assert not longer or any(other[:kept] == row[:kept] for other in longer)


@pytest.mark.slow
def test_both_sides_alternate_and_agree(capfd: pytest.CaptureFixture[str]) -> None:
    words = "step --model small --device cpu --dtype float32 --group_size 8 --micro_batch 4 --prompt_length 30"
    words += " --completion_mean 10 --completion_cap 20 --repeats 1 --lora_r 4"
    if Version(trl.__version__) < Version("1.16"):
        with pytest.raises(ValueError, match="cannot score on a CPU"):
            main(words.split())
        return
    assert main(words.split()) == 0
    out = capfd.readouterr().out
    result = json.loads(out.splitlines()[-1])
    assert "relative difference of gradients" in out
    assert result["gradient_difference"] < 1e-5
    # Reference and policy pass; stock pads every row to the cap
    assert sum(result["stock"]["tokens"]) == 2 * 8 * (30 + 20)
    assert len(result["ours"]["tokens"]) == 2 and result["ours"]["tokens"][0] < 8 * 20 + 30
    assert result["time_ratio"] > 0 and result["memory_ratio"] > 0 and result["flop_ratio"] > 2


def test_unknown_names_and_wrong_sizes_are_named() -> None:
    with pytest.raises(ValueError, match="no benchmark 'stepp'; it must be one of: generate, step"):
        main(["stepp"])
    with pytest.raises(ValueError, match="`--micro_batch` is 5; it must divide the 64 rows"):
        main(["step", "--micro_batch", "5"])


@pytest.mark.parametrize("benchmark", ["generate", "step", "sync"])
def test_what_leaves_nothing_to_measure_is_refused(
    benchmark: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="`repeats` is 0; it must be at least 1"):
        main([benchmark, "--repeats", "0"])
    # Peak memory and synchronisation go by the name of the device
    with pytest.raises(SystemExit):
        main([benchmark, "--device", "cuda:0"])
    assert "invalid choice: 'cuda:0'" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="`device` is 'cuda', but torch finds no such device here"):
        main([benchmark, "--device", "cuda"])


def test_sizes_of_a_step_are_refused() -> None:
    with pytest.raises(ValueError, match="`micro_batch` is 0; it must be at least 1"):
        main(["step", "--micro_batch", "0"])
    with pytest.raises(ValueError, match=r"`--shared` is 1\.5; it must be from 0 to 1"):
        main(["step", "--shared", "1.5"])
