"""Every field with wrong values, pairs that contradict each other, and random ones: a run or one sentence."""

import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from outcomes import BASE, attempt, verdict
from wrong_values import PAIRS, Case, cases, hints, mixed

from grpo_ext import GRPOExtConfig
from grpo_ext.checks import brief, check_numbers, typed
from grpo_ext.checks.conditions import COMPANY, FAULTS, NAMES
from grpo_ext.checks.limits import LIMITS, RECIPE_LIMITS
from grpo_ext.checks.types import BEYOND, FROM_FILES, NOT_NONE, UNLIMITED
from grpo_ext.recipes.arguments import RecipeArguments
from grpo_ext.recipes.process_reward import ProcessRewardArguments
from grpo_ext.recipes.reward_model import RewardModelArguments
from grpo_ext.recipes.rlhf_run import RLHFArguments


def tried(folder: Path, chosen: Iterable[Case]) -> Counter[str]:
    """What came of cases; an assertion names all those that ended badly."""
    found: Counter[str] = Counter()
    bad = []
    for number, case in enumerate(chosen):
        try:
            found[verdict(attempt(folder / str(number), case.given, runs=case.runs), *case.given)] += 1
        except AssertionError as error:
            bad.append(f"{case}: {str(error)!a}")
    assert not bad, "\n".join(bad)
    return found


def test_every_field_is_met() -> None:
    met = Counter(case.name for case in cases())
    assert set(met) == {name for name, spec in GRPOExtConfig.__dataclass_fields__.items() if spec.init} - {
        "parallelism_config"  # an object of accelerate, which no file or flag can hold
    } | ({"parallelism_config"} & set(met))
    assert min(met.values()) >= 1 and sum(met.values()) >= 1500


def test_a_sample_of_wrong_values(tmp_path: Path) -> None:
    found = tried(tmp_path, list(cases())[::19])
    assert found["ours"] > 70 and found["ran"] >= 5


def test_a_sample_of_pairs(tmp_path: Path) -> None:
    assert tried(tmp_path, [Case(pair) for pair in PAIRS[::11]])["ours"] >= 5


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_wrong_values(tmp_path: Path) -> None:
    found = tried(tmp_path, cases())
    assert found["ours"] > 1500 and found["ran"] > 100
    # Few enough to be read, all in `HOST_SENTENCES`
    assert found["host"] < 40


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_all_pairs(tmp_path: Path) -> None:
    assert tried(tmp_path, map(Case, PAIRS))["ours"] > 50


@pytest.mark.slow
@pytest.mark.timeout(900)
@settings(max_examples=200, suppress_health_check=list(HealthCheck), derandomize=True)
@given(mixed())
def test_random_fields(tmp_path: Path, given: dict[str, Any]) -> None:
    related = (
        "num_generations",
        "generation_batch_size",
        "steps_per_generation",
        "num_rounds",
        "process_reward",
        "beta",
    )
    verdict(attempt(tmp_path, given), *given, *related)


# What TRL takes and what works stays taken

TAKEN: list[dict[str, Any]] = [
    {"top_k": None},
    {"top_k": -1, "use_vllm": True},
    {"scale_rewards": True},
    {"scale_rewards": False},
    {"run_name": 3},
    {"eval_delay": None},
    {"max_steps": 2.0},
    {"max_steps": np.int64(2)},
    {"learning_rate": np.float32(0.1)},
    {"learning_rate": 1},
    {"max_grad_norm": math.inf},
    {"epsilon_high": math.inf},
    {"delta": math.inf},
    {"use_cpu": 1},
    {"gradient_checkpointing": None},
    {"num_train_epochs": 0},
    {"output_dir": Path("somewhere")},
    {"generation_kwargs": '{"top_p": 0.9}'},
    {"generation_kwargs": {"eos_token_id": [1, 2], "max_new_tokens": 4}},
    {"lr_scheduler_kwargs": {"last_epoch": -1}},
    {"accelerator_config": {"split_batches": False}},
    {"accelerator_config": None},
    {"report_to": ["none"]},
    {"report_to": "all"},
    {"debug": "underflow_overflow"},
    {"debug": None},
    {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-7}},
    {"resume_from_checkpoint": True},
    {"optim": "adamw_torch"},
    {"optim_args": "a=1,b=2"},
    {"reward_weights": (1, 2.0)},
    {"include_for_metrics": None},
    {"logging_steps": 0, "logging_strategy": "no"},
    {"data_seed": None},
    {"torch_compile_mode": "reduce-overhead"},
]


@pytest.mark.parametrize("fields", TAKEN, ids=lambda fields: ",".join(f"{k}={v!r}" for k, v in fields.items()))
def test_what_works_is_taken(fields: dict[str, Any], tmp_path: Path) -> None:
    given = {"output_dir": str(tmp_path), **BASE, **fields}
    config = GRPOExtConfig(**given)
    for name, value in given.items():
        found = getattr(config, name)
        if name in ("max_steps", "learning_rate"):
            assert found == value and isinstance(found, int | float | np.number)
    assert isinstance(config.max_steps, int | np.integer)


@pytest.mark.parametrize("name", ["sft_epochs", "reward_epochs"])
def test_no_pass_at_all_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}` is 0.0; it must be above 0"):
        check_numbers(RLHFArguments(**{name: 0.0}))


def test_a_number_below_the_one_for_none() -> None:
    with pytest.raises(ValueError, match="`max_steps` is -2; it must be at least 1, or 0 or -1 for none"):
        GRPOExtConfig(max_steps=-2)


def test_tables_name_fields() -> None:
    own = set(hints())
    recipes = (RecipeArguments, ProcessRewardArguments, RewardModelArguments, RLHFArguments)
    options = {name for recipe in recipes for name in recipe.__dataclass_fields__}
    assert {*LIMITS, *NAMES, *FAULTS, *COMPANY, *BEYOND, *FROM_FILES, *NOT_NONE, *UNLIMITED} <= own
    assert set(RECIPE_LIMITS) <= options and not set(RECIPE_LIMITS) & own


@pytest.mark.parametrize(
    ("value", "hint", "words"),
    [
        ("3", int, "a whole number"),
        (1.5, int | None, "a whole number, or unset"),
        ([1], list[str], "a list of text"),
        ("a", Literal["b"], "'b'"),
        (3, dict | str, "a mapping of names or text"),
        (2**63, int, "64 bits"),
        (math.nan, float, "finite"),
        (1e39, float, "finite"),
    ],
)
def test_sentences_about_types(value: Any, hint: Any, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        typed("field", value, hint)
    text = str(caught.value)
    assert text.startswith("`field` is ") and words in text and text.endswith(".")


def test_a_value_in_a_few_words() -> None:
    loop: list[Any] = []
    loop += [loop] * 1000
    assert all(len(brief(value)) < 200 for value in (loop, "x" * 10**6, 10**5000, {"a": {"b": {"c": loop}}}))
