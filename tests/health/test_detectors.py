"""Each detector speaks on its own illness and alone; all are silent on healthy runs, whatever values are missing."""

import math
import random
import re
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from logged_runs import HEALTHY, ILL, Rows, changed, healthy

from grpo_ext.config import GRPOExtConfig
from grpo_ext.health import DETECTORS, Finding, History, Monitor, chosen, thresholds
from grpo_ext.health.cheating import LENGTH
from grpo_ext.rewards import FACTORIES, REWARDS

SEEDS = range(5)


def findings(rows: Rows, **detectors: Any) -> list[Finding]:
    monitor = Monitor(**detectors)
    return [finding for step, row in enumerate(rows, start=1) for finding in monitor.add(step, row)]


def test_there_are_ten_and_each_has_an_illness() -> None:
    assert len(DETECTORS) == 10
    assert list(ILL) == list(DETECTORS)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("name", "make"), [(name, make) for name, runs in ILL.items() for make in runs])
def test_a_detector_speaks_on_its_illness_and_alone(name: str, make: Callable[[int], Rows], seed: int) -> None:
    found = findings(make(seed))
    assert {finding.detector for finding in found} == {name}, found


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("make", HEALTHY.values(), ids=HEALTHY)
def test_a_healthy_run_is_left_alone(make: Callable[[int], Rows], seed: int) -> None:
    assert findings(make(seed)) == []


@pytest.mark.parametrize("nothing", [None, math.nan, math.inf, "absent"])
@pytest.mark.parametrize("make", HEALTHY.values(), ids=HEALTHY)
def test_missing_values_are_no_finding(make: Callable[[int], Rows], nothing: Any) -> None:
    draw = random.Random(0)
    rows = [
        # An infinite gradient norm is one
        {key: nothing if draw.random() < 0.3 and key != "grad_norm" else value for key, value in row.items()}
        for row in make(0)
    ]
    assert findings(rows) == []
    assert findings([{k: v for k, v in row.items() if v != "absent"} for row in rows]) == []


METRICS = sorted({key for make in HEALTHY.values() for key in make(0)[0]} | {"kl", "rewards/other/mean"})
VALUES = st.one_of(
    st.none(), st.booleans(), st.text(max_size=3), st.integers(), st.floats(), st.integers(10**300, 10**400)
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from(METRICS), VALUES), max_size=30))
def test_any_log_can_be_read(rows: Rows) -> None:
    for finding in findings(rows * 5):
        assert finding.severity in ("warning", "critical")
        assert "\n" not in finding.message and isinstance(finding.value, float)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(sorted(HEALTHY)))
def test_a_metric_that_nobody_logs_is_no_finding(seed: int, name: str) -> None:
    draw = random.Random(seed)
    # Without the other parts a reward may look paid by length, or its rise be gone
    droppable = [key for key in METRICS if not key.startswith("reward")]
    gone = set(draw.sample(droppable, 3))
    assert findings([{k: v for k, v in row.items() if k not in gone} for row in HEALTHY[name](seed % 5)]) == []


# A threshold is where it is said to be: (metric, detector, threshold) of those that compare a level.
LEVELS = [
    ("dead_groups", "dead_groups", "share"),
    ("frac_reward_zero_std", "dead_groups", "share"),
    ("kl", "kl_drift", "limit"),
    ("clip_ratio/region_mean", "clip_saturation", "limit"),
    ("cispo_clip_ratio", "clip_saturation", "limit"),
    ("completions/clipped_ratio", "truncated_completions", "share"),
    ("sampling/sampling_logp_difference/mean", "sampler_mismatch", "limit"),
]


@pytest.mark.parametrize(("metric", "name", "threshold"), LEVELS)
@pytest.mark.parametrize("factor", [0.5, 1.0, 1.1])
def test_a_level_is_found_from_its_threshold_on(metric: str, name: str, threshold: str, factor: float) -> None:
    limit = factor * thresholds(DETECTORS[name])[threshold]
    watching = chosen([f"{name}.{threshold}={limit}"])
    window = int(thresholds(DETECTORS[name])["window"])
    assert not findings([{metric: 0.99 * limit}] * window, detectors=watching)
    assert not findings([{metric: 1.01 * limit}] * (window - 1), detectors=watching)
    (found,) = findings([{metric: 1.01 * limit}] * window, detectors=watching)
    assert (found.detector, found.step) == (name, window)
    assert found.value == pytest.approx(1.01 * limit)


def test_dead_groups_are_those_of_the_advantages() -> None:
    """Under a process reward, or after resampling, groups with equal outcome rewards teach."""
    equal = {"frac_reward_zero_std": 1.0, "reward": 0.5}
    assert not findings([{**equal, "dead_groups": 0.1}] * 20)
    (found,) = findings([{**equal, "dead_groups": 1.0, "resampling/rounds": 3.0}] * 20)
    assert found.severity == "critical" and "resampling" not in found.message
    (found,) = findings([equal] * 20)
    assert found.message.endswith("`num_generations`, or set `resampling`.")


def test_a_gradient_is_compared_with_those_before() -> None:
    usual = [{"grad_norm": 0.5}] * 8
    assert not findings([*usual, {"grad_norm": 4.99}])
    assert not findings([*usual[1:], {"grad_norm": 5.01}])
    (found,) = findings([*usual, {"grad_norm": 5.01}, *usual])
    assert (found.detector, found.step, found.value, found.severity) == ("gradient_spikes", 9, 5.01, "warning")


def test_a_reward_that_falls_is_critical_and_one_that_stays_is_not() -> None:
    (stays,) = findings(ILL["reward_plateau"][0](0)[:130])
    falling = changed(healthy(0, 130), reward=lambda at: 0.9 - 0.005 * at + 0.01 * (at % 3), entropy=lambda at: 0.5)
    (falls,) = findings(falling)
    assert (stays.severity, falls.severity) == ("warning", "critical")
    # The line through the last hundred values, 99 rows long
    assert falls.value == pytest.approx(-0.005 * 99, abs=0.002)


def test_rewards_of_one_row_in_four_are_enough() -> None:
    """With `num_iterations` 4 TRL logs them where it generates, and the entropy and the gradient everywhere."""
    everywhere = ("entropy", "grad_norm", "loss", "clip_ratio/region_mean")
    for name in ("dead_groups", "reward_plateau", "length_hacking", "truncated_completions", "parts_apart"):
        rows = [row for row in ILL[name][0](0) for _ in range(4)]
        seldom = [row if at % 4 == 0 else {k: row[k] for k in everywhere} for at, row in enumerate(rows)]
        assert {finding.detector for finding in findings(seldom)} == {name}


@pytest.mark.parametrize("growth", [1.3, 2.0])
def test_a_length_must_grow_by_its_threshold(growth: float) -> None:
    wobble = [0.1, -0.1, 0.2, -0.2, 0.0]
    rows = [
        {"reward": 0.5 + wobble[at % 5], LENGTH: 100 * (1 + (factor - 1) * at / 31)}
        for factor in (growth - 0.02, growth + 0.02)
        for at in range(32)
    ]
    watching = chosen([f"length_hacking.growth={growth}", "length_hacking.least=32"])
    assert not findings(rows[:32], detectors=watching)
    (found,) = findings(rows[32:], detectors=watching)
    assert found.value == pytest.approx(growth + 0.02)


def test_the_trend_is_a_least_squares_line() -> None:
    rows = [{"x": value} for value in (1.0, 3.0, None, 6.0, 9.0)]
    trend = History(rows).trend("x", 5, least=4)
    assert History(rows).trend("x", 5, least=5) is None
    assert trend is not None
    # Of (0, 1), (1, 3), (3, 6), (4, 9): slope 1.9, intercept 0.95, residuals 0.05, 0.15, -0.65, 0.45
    assert trend.start == 1.0
    assert trend.end == pytest.approx(8.55)
    assert trend.t == pytest.approx(1.9 / math.sqrt((0.05**2 + 0.15**2 + 0.65**2 + 0.45**2) / 2 / 10))


def test_a_finding_is_said_once() -> None:
    rows = ILL["dead_groups"][0](0) + [{"frac_reward_zero_std": 0.95}] * 200
    assert len(findings(rows)) == 1


def test_a_finding_is_said_again_after_a_calm_time() -> None:
    bad, good = [{"kl": 1.0}] * 10, [{"kl": 0.1}]
    assert len(findings(bad + good * 10 + bad)) == 1
    assert len(findings(bad + good * 40 + bad)) == 2


def test_a_warning_that_turns_critical_is_said_again() -> None:
    found = findings([{"kl": 1.0}] * 10 + [{"kl": 50.0}] * 30 + [{"kl": 1.0}] * 30 + [{"kl": 50.0}] * 30)
    assert [finding.severity for finding in found] == ["warning", "critical"]


def test_a_sentence_has_its_number_and_a_setting_that_exists() -> None:
    settings_ = {spec.name for spec in fields(GRPOExtConfig)} | set(REWARDS) | set(FACTORIES)
    for name, runs in ILL.items():
        for make in runs:
            finding = findings(make(0))[0]
            named = set(re.findall(r"`(\w+)`", finding.message)) - {"correct", "format", "long"}
            assert named and named <= settings_, (name, named - settings_)
            assert re.search(r"\d|nan", finding.message) and finding.message.endswith((".", "unset."))
            assert finding.message.count(". ") == 0, finding.message


# Settings


def test_settings_change_a_threshold_and_switch_off() -> None:
    watching = chosen(["kl_drift.limit=0.8", "kl_drift.window=4", "reward_plateau=off"])
    assert (watching["kl_drift"].limit, watching["kl_drift"].window) == (0.8, 4)  # type: ignore[attr-defined]
    assert list(watching) == [name for name in DETECTORS if name != "reward_plateau"]
    assert chosen([]) == DETECTORS


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("kl_drft.limit=1", "did you mean 'kl_drift'"),
        ("kl_drift.limt=1", "did you mean 'limit'"),
        ("kl_drift=0.5", "not a threshold of kl_drift"),
        ("kl_drift.limit", "positive number"),
        ("kl_drift.limit=-1", "positive number"),
        ("kl_drift.limit=nan", "positive number"),
        ("kl_drift.window=2.5", "positive whole number"),
        ("everything=off", "there are: dead_groups"),
    ],
)
def test_a_wrong_setting_is_named(setting: str, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        chosen([setting])
