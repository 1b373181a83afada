"""Which panels there are, and what is drawn in them."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_runs import metrics

from grpo_ext.report.panels import PANELS, ends, panels, running_mean, series, throughput
from grpo_ext.report.reading import Run


def run(rows: list[dict[str, float]], name: str = "r") -> Run:
    return Run(name=name, folder=Path(), metrics=rows)


def keys(*runs: Run) -> list[str]:
    return [panel.key for rows in panels(runs).values() for panel in rows]


def test_reward_is_first_and_its_parts_follow() -> None:
    found = keys(run(metrics(3)))
    assert found[:3] == ["reward", "rewards/correct/mean", "rewards/format/mean"]
    assert {"kl", "entropy", "clip_ratio/region_mean", "frac_reward_zero_std", "step_time", "tokens_per_second",
            "memory/peak_gib", "completions/mean_length"} <= set(found)  # fmt: skip


def test_a_single_part_is_the_reward_itself() -> None:
    rows = [{"step": 1, "reward": 0.5, "rewards/correct/mean": 0.5}]
    assert keys(run(rows)) == ["reward"]


def test_what_no_row_knows_comes_last_and_counters_do_not() -> None:
    rows = [{"step": 1, "reward": 0.5, "epoch": 0.1, "resampling/rounds": 2.0, "train_loss": 0.1, "kl": 0.2}]
    assert keys(run(rows)) == ["reward", "kl", "resampling/rounds"]


def test_a_panel_that_one_of_two_runs_has() -> None:
    rows = [{"step": 1, "reward": 0.5}]
    assert "kl" in keys(run(rows), run([{"step": 1, "reward": 0.5, "kl": 0.1}]))
    assert "kl" not in keys(run(rows))


def test_keys_are_unique() -> None:
    rows = [panel.key for found in PANELS.values() for panel in found]
    assert len(rows) == len(set(rows))
    assert all(panel.title for found in PANELS.values() for panel in found)


def test_throughput_counts_the_steps_between_two_rows() -> None:
    rows = [
        {"step": 5, "num_tokens": 1000.0, "step_time": 2.0},
        {"step": 10, "num_tokens": 4000.0, "step_time": 3.0},
        {"step": 11, "num_tokens": 4500.0, "step_time": 0.0},
        {"step": 12, "num_tokens": 4000.0, "step_time": 1.0},
    ]
    assert throughput(rows) == {5: 100.0, 10: 200.0}


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=300), st.integers(2, 50))
def test_a_long_line_is_averaged_in_order(values: list[float], points: int) -> None:
    rows = [{"step": float(step), "reward": value} for step, value in enumerate(values)]
    steps, drawn = series(run(rows), "reward", points)
    assert len(steps) == len(drawn) <= points and steps == sorted(steps)
    if len(values) <= points:
        assert drawn == values
    elif len(values) % points == 0:
        assert sum(drawn) / len(drawn) == pytest.approx(sum(values) / len(values), abs=1e-9)


@given(st.lists(st.floats(-5, 5), max_size=100))
def test_a_running_mean_stays_within_its_values(values: list[float]) -> None:
    found = running_mean(values)
    assert len(found) == len(values)
    assert all(min(values) - 1e-9 <= value <= max(values) + 1e-9 for value in found)


def test_running_mean_by_hand() -> None:
    values = [0.0] * 11 + [12.0] + [0.0] * 12
    # 24 values: two neighbours on each side
    assert running_mean(values)[9:14] == pytest.approx([2.4] * 5)
    assert running_mean(values)[8] == 0.0
    assert running_mean([3.0] + [0.0] * 23)[0] == pytest.approx(1.0)


def test_ends_are_tenths() -> None:
    rows = [{"step": float(step), "reward": float(step)} for step in range(30)]
    assert ends(run(rows)) == (1.0, 28.0)
    assert ends(run(rows[:3])) == (0.0, 2.0)
