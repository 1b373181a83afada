"""Options that act only beside another one are refused without it."""

from pathlib import Path
from typing import Any

import pytest

from grpo_ext import GRPOExtConfig
from grpo_ext.checks.conditions import COMPANY as TABLE

ROLLOUTS = {"process_reward": "rollouts_hard"}
# Field, a value of it, and fields beside which it acts
COMPANY = [
    ("kl_target", 0.1, {"kl_controller": "ppo", "beta": 0.04}),
    ("num_beam_groups", 2, {"group_generation": "diverse_beam"}),
    ("diversity_penalty", 0.7, {"group_generation": "diverse_beam"}),
    ("length_penalty", 0.0, {"group_generation": "beam"}),
    ("length_penalty", 0.0, {"group_generation": "beam+sampling"}),
    ("importance_sampling_level", "sequence", {"surrogate": "clip"}),
    ("importance_sampling_level", "sequence", {"surrogate": "gamma", "kl_estimator": "k3_corrected", "beta": 0.04}),
    ("ratio_against", "reference", {"surrogate": "geometric", "beta": 0.04}),
    ("delta", 2.0, {"surrogate": "clip"}),
    ("kl_against", "old", {"beta": 0.04}),
    (
        "vllm_request_timeout",
        10.0,
        {"vllm_server_urls": ["http://localhost:1"], "use_vllm": True, "vllm_sync": "adapter"},
    ),
    ("resampling_rounds", 5, {"resampling": "dynamic_sampling"}),
    ("process_rollouts", 4, ROLLOUTS),
    ("process_rollout_model", "a/model", ROLLOUTS),
    ("process_rollout_check", "correct", ROLLOUTS),
    ("process_rollout_tokens", 100, ROLLOUTS),
    ("scoring_tokens", 100, {"scoring": "auto"}),
    ("scoring_attention", "sdpa", {"scoring": "tree"}),
]
# What its company is replaced by, where leaving it out says too little
ALONE: dict[str, dict[str, Any]] = {
    "kl_target": {"kl_controller": "fixed", "beta": 0.04},
    "importance_sampling_level": {"surrogate": "geometric", "kl_estimator": "k3", "beta": 0.04},
    "ratio_against": {"surrogate": "reinforce", "beta": 0.04},
    "delta": {"surrogate": "none"},
    "length_penalty": {"group_generation": "stochastic_beam", "scale_rewards": "none"},
    **{name: {"scoring": "padded"} for name in ("scoring_tokens", "scoring_attention")},
    **{name: {"process_reward": "calculations"} for name, _, _ in COMPANY if name.startswith("process_")},
}


def make(folder: Path, **fields: Any) -> GRPOExtConfig:
    return GRPOExtConfig(output_dir=str(folder), use_cpu=True, bf16=False, report_to="none", **fields)


def test_every_row_is_met() -> None:
    assert {name for name, _, _ in COMPANY} == set(TABLE)


@pytest.mark.parametrize(("name", "value", "company"), COMPANY)
def test_an_option_that_would_act_on_nothing(tmp_path: Path, name: str, value: Any, company: dict[str, Any]) -> None:
    assert getattr(make(tmp_path, **company, **{name: value}), name) == value
    alone = ALONE.get(name, {})
    with pytest.raises(ValueError) as caught:
        make(tmp_path, **alone, **{name: value})
    assert str(caught.value).startswith(f"`{name}` is {value!r}, but it acts only with `{next(iter(company))}`")
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")
    default = GRPOExtConfig.__dataclass_fields__[name].default
    assert getattr(make(tmp_path, **alone, **{name: default}), name) == default
