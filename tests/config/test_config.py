"""The config: presets, TRL's own when nothing is asked for, and one sentence for everything that cannot work."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from trl import GRPOConfig, TrlParser

from grpo_ext import GRPOExtConfig
from grpo_ext.objective import TRL_LOSS_TYPES, Objective
from grpo_ext.ops.advantages import BASELINES, SCALES
from grpo_ext.ops.aggregation import AGGREGATIONS
from grpo_ext.ops.kl import KL_CONTROLLERS, KL_ESTIMATORS
from grpo_ext.ops.ratios import RATIO_LEVELS
from grpo_ext.ops.surrogates import SURROGATES, Clipping
from grpo_ext.presets import PRESETS

AXES = {
    "surrogate": SURROGATES,
    "aggregation": AGGREGATIONS,
    "importance_sampling_level": RATIO_LEVELS,
    "kl_estimator": KL_ESTIMATORS,
    "kl_controller": KL_CONTROLLERS,
    "advantage_baseline": BASELINES,
    "scale_rewards": SCALES,
}


def make(folder: Path, **fields: Any) -> GRPOExtConfig:
    fixed = {"output_dir": str(folder), "use_cpu": True, "bf16": False, "report_to": "none"}
    return GRPOExtConfig(**{**fixed, **fields})


def refusal(folder: Path, **fields: Any) -> str:
    with pytest.raises(ValueError) as caught:
        make(folder, **fields)
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".")
    return message


# Presets

# What each preset composes, but for the clipping constants
COMPOSED = {
    "deepseekmath": Objective("clip", "seq_mean_token_mean"),
    "deepseekmath_process": Objective("clip", "seq_mean_token_mean"),
    "dr_grpo": Objective("clip", "seq_mean_token_sum_norm"),
    "dapo": Objective("clip", "token_mean"),
    "gspo": Objective("clip", "seq_mean_token_mean", "sequence"),
    "gspo_token": Objective("clip", "seq_mean_token_mean", "sequence_token"),
    "cispo": Objective("cispo", "token_mean"),
    "gmpo": Objective("geometric", "seq_mean_token_mean"),
    "sapo": Objective("soft", "seq_mean_token_mean"),
    "luspo": Objective("clip", "seq_mean_token_sum", "sequence"),
    "vespo": Objective("gamma", "token_mean"),
    "beam": Objective("clip", "group_sum", ratio_against="reference"),
    "sequence_product": Objective("none", "group_sum", "sequence_sum", kl_against="old"),
    "reinforce_group": Objective("reinforce", "seq_mean_token_sum"),
}
# (epsilon, epsilon_high), beta, scale, whether TRL's own loss runs
NUMBERS = {
    "deepseekmath": ((0.2, 0.2), 0.04, "group", True),
    "deepseekmath_process": ((0.2, 0.2), 0.04, "group", True),
    "dr_grpo": ((0.2, 0.2), 0.0, "none", True),
    "dapo": ((0.2, 0.28), 0.0, "group", True),
    "gspo": ((3e-4, 4e-4), 0.0, "group", True),
    "gspo_token": ((3e-4, 4e-4), 0.0, "group", False),
    "cispo": ((0.2, 5.0), 0.0, "group", True),
    "gmpo": ((0.4, 0.4), 0.0, "group", False),
    "sapo": ((0.2, 0.2), 0.0, "group", True),
    "luspo": ((2e-3, 2.5e-3), 0.0, "group", True),
    "vespo": ((0.2, 0.2), 0.0, "none", True),
    "beam": ((0.2, 0.2), 0.04, "group_eps_inside", False),
    "sequence_product": ((0.2, 0.2), 0.04, "none", False),
    "reinforce_group": ((0.2, 0.2), 0.1, "group", False),
}


@pytest.mark.parametrize("name", PRESETS)
def test_presets(tmp_path: Path, name: str) -> None:
    config = make(tmp_path, **PRESETS[name])
    (low, high), beta, scale, native = NUMBERS[name]
    expected, found = COMPOSED[name], config.objective()
    assert found.clipping == Clipping(epsilon=low, epsilon_high=high)
    axes = ("surrogate", "aggregation", "ratio_level", "ratio_against", "kl_against", "kl_in_loss", "entropy_coef")
    assert [getattr(found, axis) for axis in axes] == [getattr(expected, axis) for axis in axes]
    assert (config.beta, config.scale_rewards, config.advantage_baseline) == (beta, scale, "mean")
    assert config.uses_own_objective is not native
    if beta:
        assert found.kl_estimator == "k3"


def test_presets_name_fields_of_the_config_and_values_that_a_parser_takes(tmp_path: Path) -> None:
    fields = GRPOExtConfig.__dataclass_fields__
    for name, preset in PRESETS.items():
        assert set(preset) <= set(fields), name
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump({**preset, "output_dir": str(tmp_path), "use_cpu": True, "bf16": False}))
        (config,) = TrlParser(GRPOExtConfig).parse_args_and_config(["--config", str(file)])
        assert config.objective() == make(tmp_path, **preset).objective()


# Defaults


def test_unset_fields_leave_everything_to_trl(tmp_path: Path) -> None:
    config = make(tmp_path)
    assert not config.uses_own_objective and not config.uses_own_advantages
    native = GRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none")
    own = set(GRPOExtConfig.__dataclass_fields__) - set(GRPOConfig.__dataclass_fields__)
    skipped = {"logging_dir", "run_name"}
    for name in set(GRPOConfig.__dataclass_fields__) - skipped:
        assert getattr(config, name, None) == getattr(native, name, None) or name == "accelerator_config", name
    numbers_of_a_choice = {"num_beam_groups", "diversity_penalty", "length_penalty", "resampling_rounds"}
    numbers_of_a_choice |= {"vllm_request_timeout"}
    numbers_of_a_choice |= {name for name in own if name.startswith("process_")} - {"process_reward"}
    limits_of_faults = {"reward_retries", "reward_errors", "max_unscorable", "max_skipped_steps", "max_failed_saves"}
    given = {name for name in own if getattr(config, name) is not None} - numbers_of_a_choice - limits_of_faults
    assert given == {"advantage_eps", "scoring", "group_generation", "num_rounds"}
    assert config.group_generation == "sampling" and config.num_rounds == 1
    assert config.advantage_eps == 1e-4


@pytest.mark.parametrize("loss_type", TRL_LOSS_TYPES)
def test_loss_types_of_trl_as_objectives(tmp_path: Path, loss_type: str) -> None:
    config = make(tmp_path, loss_type=loss_type, use_bias_correction_kl=True, entropy_coef=0.25, delta=2.0)
    found = config.objective()
    assert not config.uses_own_objective
    assert {"surrogate": found.surrogate, "aggregation": found.aggregation} == TRL_LOSS_TYPES[loss_type]
    assert (found.kl_estimator, found.entropy_coef, found.clipping.delta) == ("k3_corrected", 0.25, 2.0)
    assert make(tmp_path, loss_type=loss_type, use_bias_correction_kl=False).objective().kl_estimator == "k3"


OWN_OBJECTIVE = [
    {"surrogate": "clip"},
    {"aggregation": "token_mean"},
    {"ratio_against": "old"},
    {"kl_estimator": "k2"},
    {"kl_against": "old", "beta": 0.04},
    {"kl_in": "loss"},
    {"importance_sampling_level": "sequence_sum"},
]


@pytest.mark.parametrize("fields", OWN_OBJECTIVE, ids=lambda fields: next(iter(fields)))
def test_one_own_field_takes_the_objective_over(tmp_path: Path, fields: dict[str, str]) -> None:
    config = make(tmp_path, **fields)
    assert config.uses_own_objective and not config.uses_own_advantages


@pytest.mark.parametrize(
    "fields",
    [
        {"advantage_baseline": "mean"},
        {"group_by": "task"},
        {"scale_rewards": "group_eps_inside"},
        {"advantage_eps": 1e-6},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_one_own_field_takes_the_advantages_over(tmp_path: Path, fields: dict[str, Any]) -> None:
    config = make(tmp_path, **fields)
    assert config.uses_own_advantages and not config.uses_own_objective


def test_kl_in_the_reward_leaves_the_loss(tmp_path: Path) -> None:
    config = make(tmp_path, kl_in="reward", kl_estimator="k1", beta=0.1)
    assert config.uses_own_advantages and config.uses_own_objective
    assert not config.objective().kl_in_loss
    # TRL's correction is one of a gradient, so it does not follow the KL into the reward
    assert make(tmp_path, kl_in="reward", use_bias_correction_kl=True, beta=0.1).objective().kl_estimator == "k3"


def test_scale_rewards_takes_the_booleans_that_trl_takes(tmp_path: Path) -> None:
    assert make(tmp_path, scale_rewards=True).scale_rewards == "group"
    assert make(tmp_path, scale_rewards=False).scale_rewards == "none"


def test_constants_of_the_surrogates_arrive(tmp_path: Path) -> None:
    config = make(
        tmp_path,
        epsilon=0.1,
        sapo_temperature_pos=1.5,
        sapo_temperature_neg=2.5,
        vespo_k_pos=1.0,
        vespo_lambda_pos=2.0,
        vespo_k_neg=3.0,
        vespo_lambda_neg=4.0,
    )
    expected = Clipping(0.1, 0.1, tau_pos=1.5, tau_neg=2.5, gamma=(1.0, 2.0, 3.0, 4.0))
    assert config.objective().clipping == expected
    # 0 is a bound of its own, not an unset one
    assert make(tmp_path, epsilon=0.1, epsilon_high=0.0).objective().clipping.epsilon_high == 0.0


# Errors


@pytest.mark.parametrize("name", [*AXES, "loss_type", "ratio_against", "kl_against", "kl_in"])
def test_unknown_choice_from_a_file(tmp_path: Path, name: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({name: "grop", "output_dir": str(tmp_path), "use_cpu": True, "bf16": False}))
    with pytest.raises(ValueError) as caught:
        TrlParser(GRPOExtConfig).parse_args_and_config(["--config", str(file)])
    message = str(caught.value)
    assert message.startswith(f"`{name}` is 'grop'")
    for choice in AXES.get(name, ()):
        assert choice in message


@pytest.mark.parametrize("name", AXES)
def test_every_row_of_an_axis_is_a_choice(name: str) -> None:
    assert GRPOExtConfig.__dataclass_fields__[name].metadata["choices"] == list(AXES[name])
    assert all(choice in GRPOExtConfig.__dataclass_fields__[name].metadata["help"] for choice in AXES[name])


@pytest.mark.parametrize("size", [1, 0, -2])
def test_a_group_of_one(tmp_path: Path, size: int) -> None:
    assert f"`num_generations` is {size}" in refusal(tmp_path, num_generations=size)


@pytest.mark.parametrize(
    "batch, accumulation, size, processes",
    [(4, 1, 8, 1), (3, 1, 2, 1), (8, 3, 16, 1), (5, 2, 8, 1), (1, 7, 64, 1), (6, 1, 4, 1), (3, 1, 4, 2), (1, 1, 8, 4)],
)
def test_batch_that_no_group_divides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int, accumulation: int, size: int, processes: int
) -> None:
    fields = {"per_device_train_batch_size": batch}
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    message = refusal(tmp_path, num_generations=size, gradient_accumulation_steps=accumulation, **fields)
    assert "`num_generations`" in message and "gradient_accumulation_steps" in message
    # A config of several processes cannot be built in one; the arithmetic that TRL applies can be
    monkeypatch.delenv("WORLD_SIZE")
    fields["per_device_train_batch_size"] = batch * processes
    steps = int(re.search(r"gradient_accumulation_steps=(\d+)", message)[1])
    assert steps > accumulation
    assert make(tmp_path, num_generations=size, gradient_accumulation_steps=steps, **fields).num_generations == size
    advised = message[message.rindex("num_generations in") :]
    for number in map(int, re.findall(r"\d+", advised)):
        config = make(tmp_path, num_generations=number, gradient_accumulation_steps=accumulation, **fields)
        assert config.num_generations == number


def test_batch_is_left_to_trl_when_its_size_is_given(tmp_path: Path) -> None:
    fields = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "num_generations": 8}
    assert make(tmp_path, steps_per_generation=2, **fields).generation_batch_size == 8
    assert make(tmp_path, generation_batch_size=16, **fields).steps_per_generation == 4
    with pytest.raises(ValueError):
        make(tmp_path, steps_per_generation=1, **fields)


@pytest.mark.parametrize(
    "field, fields",
    [
        ("kl_estimator", {"kl_estimator": "k1", "beta": 0.04}),
        ("ratio_against", {"ratio_against": "reference", "beta": 0.0}),
        ("kl_controller", {"kl_controller": "ziegler", "beta": 0.04}),
        ("kl_target", {"kl_controller": "ppo", "kl_target": 0.0, "beta": 0.04}),
        ("kl_controller", {"kl_controller": "ppo", "kl_target": 0.1, "beta": 0.0}),
        ("kl_target", {"kl_controller": "ppo", "kl_target": -0.1, "beta": 0.04}),
        ("beta", {"beta": -0.1}),
        ("advantage_baseline", {"advantage_baseline": "none"}),
        ("advantage_baseline", {"advantage_baseline": "none", "scale_rewards": "batch"}),
        ("scale_rewards", {"group_generation": "stochastic_beam"}),
        ("scale_rewards", {"group_generation": "stochastic_beam", "scale_rewards": "group_eps_inside"}),
        ("kl_estimator", {"kl_estimator": "k3_corrected", "kl_in": "reward", "beta": 0.04}),
        ("kl_in", {"kl_in": "reward", "beta": 0.0}),
        ("kl_against", {"kl_in": "reward", "beta": 0.04, "kl_against": "old"}),
        ("kl_in", {"kl_in": "reward", "beta": 0.04, "multi_objective_aggregation": "normalize_then_sum"}),
        ("advantage_eps", {"advantage_eps": 0.0}),
        ("use_adaptive_entropy", {"surrogate": "none", "use_adaptive_entropy": True}),
    ],
)
def test_combinations_that_mean_nothing(tmp_path: Path, field: str, fields: dict[str, Any]) -> None:
    assert f"`{field}`" in refusal(tmp_path, **fields)


def test_their_neighbours_work(tmp_path: Path) -> None:
    make(tmp_path, kl_estimator="k1", beta=0.0)
    make(tmp_path, ratio_against="reference", beta=1e-6)
    make(tmp_path, kl_controller="fixed")
    make(tmp_path, advantage_baseline="none", scale_rewards="none")
    make(tmp_path, group_generation="stochastic_beam", scale_rewards="none")
    make(tmp_path, kl_controller="ziegler", kl_target=0.1, beta=0.04)
