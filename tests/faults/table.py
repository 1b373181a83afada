"""The table of faults: rows of docs/how-to/faults.md and parameters of the tests in this folder.

A row names the test that holds it to what it says. The test is decorated with `by_its_rows` and finds in `row.name`
which fault to bring about.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest


@dataclass(frozen=True)
class Row:
    """One fault.

    Attributes:
        name: of the fault, for its test.
        fault: first column, in the words of a user.
        behaviour: second column, what happens.
        test: function in a `test_*.py` of this folder that is parametrised with the row.
        limits: fields of `GRPOExtConfig` that set the limit; the page adds their defaults.
        beyond: what the behaviour does not reach, at the end of the third column.
        slow: whether its test is one of the slow ones.
    """

    name: str
    fault: str
    behaviour: str
    test: str
    limits: tuple[str, ...] = ()
    beyond: str = ""
    slow: bool = False


STOPS = "saves the last complete step, then stops with a sentence, exit code 70"

RETRIED = f"called again `reward_retries` times, after 1, 2, 4 ... 60 s; then {STOPS}"
SAME = "as one that raises"
LEFT_OUT = "the row has advantage 0 and is in no mean and no deviation; counted in `rewards/unscorable`"
FAILS = "test_a_reward_function_that_fails_stops_the_run"
IS_LEFT_OUT = "test_rows_without_a_reward_are_left_out"
JUDGE_IS_LEFT_OUT = "test_rows_of_a_failing_judge_are_left_out"
# Fields that all failures of a function share
PATIENCE = ("reward_retries", "reward_errors")

REWARDS: tuple[Row, ...] = (
    Row("raises", "a reward function raises, or calls `sys.exit()`", RETRIED, FAILS, PATIENCE),
    Row(
        "hangs",
        "it hangs",
        f"given up after `reward_timeout`, then {SAME}",
        FAILS,
        ("reward_timeout", *PATIENCE),
        "the call goes on in a daemon thread; a coroutine that blocks its event loop is waited for",
    ),
    Row("length", "it returns too many rewards or too few", SAME, FAILS, PATIENCE, slow=True),
    Row("type", "it returns something else than a list, tuple, tensor or array", SAME, FAILS, PATIENCE, slow=True),
    Row("shape", "it returns a tensor that is not one number a row", SAME, FAILS, PATIENCE, slow=True),
    Row("no number", "it returns something for a row that is no number", SAME, FAILS, PATIENCE, slow=True),
    Row(
        "reward model",
        "a reward model raises, hangs or returns too few scores",
        SAME,
        "test_a_reward_model_that_fails_stops_the_run",
        ("reward_timeout", *PATIENCE),
        slow=True,
    ),
    Row(
        "processes",
        "one of several processes has any of these, or a process reward that raises",
        f"all of them {STOPS.replace('saves', 'save').replace('stops', 'stop')}; it names the process",
        "test_all_processes_stop_when_one_has_no_rewards",
        beyond="a process that is killed is the launcher's to notice",
        slow=True,
    ),
    Row(
        "later",
        "any of these passes while it is called again",
        "nothing is lost: the run is the one without the fault",
        "test_a_call_that_succeeds_later_changes_nothing",
        ("reward_retries",),
        "a function with a state of its own has been called more often",
    ),
    Row(
        "gone past",
        "it fails for good with reward_errors=unscorable",
        "said each time; it scores no row of this call, other functions count",
        IS_LEFT_OUT,
        ("reward_errors", "max_unscorable"),
    ),
    Row(
        "hang gone past",
        "it hangs with reward_errors=unscorable",
        "the same",
        IS_LEFT_OUT,
        ("reward_timeout", "reward_errors", "max_unscorable"),
    ),
    Row("none", "no function scores a row: `None`", LEFT_OUT, IS_LEFT_OUT, ("max_unscorable",)),
    Row("nan", "no function scores a row: NaN", f"{LEFT_OUT}; said once", IS_LEFT_OUT, ("max_unscorable",)),
    Row("infinity", "no function scores a row: ±infinity", "the same", IS_LEFT_OUT, ("max_unscorable",)),
    Row(
        "huge",
        "a reward beyond 1.8e19, whose square overflows float32",
        "the same",
        IS_LEFT_OUT,
        ("max_unscorable",),
    ),
    Row("one of several", "one of several functions gives `None`, NaN or infinity", "the others count", IS_LEFT_OUT),
    Row(
        "group",
        "no row of a group is scored",
        "a dead group: all advantages 0, counted in `frac_reward_zero_std`",
        IS_LEFT_OUT,
        ("max_unscorable",),
    ),
    Row(
        "too many",
        "more rows of a generation have no reward than `max_unscorable` allows",
        STOPS,
        FAILS,
        ("max_unscorable",),
        "in an evaluation they are counted alone",
    ),
    Row(
        "judge slow",
        "a judge's server is too slow",
        "asked again `retries` times of `judge_reward`, then `None` for the row",
        JUDGE_IS_LEFT_OUT,
    ),
    Row("judge down", "a judge's server is down", "the same", JUDGE_IS_LEFT_OUT),
    Row("judge errors", "a judge's server answers with status 500", "the same", JUDGE_IS_LEFT_OUT),
    Row("judge garbage", "a judge's server answers with garbage", "the same", JUDGE_IS_LEFT_OUT),
    Row("judge silent", "a judge answers without a score", "the same", JUDGE_IS_LEFT_OUT),
    Row(
        "judge raises",
        "any of these with `on_failure` raise of `judge_reward`",
        SAME,
        "test_a_judge_that_all_hangs_on_stops_the_run",
        PATIENCE,
        slow=True,
    ),
    Row(
        "judge alone",
        "any of these where the judge is the only reward",
        STOPS,
        "test_a_judge_that_all_hangs_on_stops_the_run",
        ("max_unscorable",),
        slow=True,
    ),
)

HALVED = (
    "the pass is run again with half as many rows, and so for the rest of the run; loss and gradient stay the same"
)
NOT_HALVED = "several processes, sharded weights, images, a router loss or Unsloth's fused loss stop the run"
SKIPPED = "the step's update is skipped: weights and moments stay, step and schedule go on"
KEPT = "nothing of it is left, earlier checkpoints stay; tried again at the next save"

TRAINING: tuple[Row, ...] = (
    Row(
        "loss",
        "the loss is not finite",
        SKIPPED,
        "test_a_step_that_is_not_finite_is_skipped",
        ("max_skipped_steps",),
        "more in a row stop the run",
    ),
    Row(
        "gradient",
        "a gradient is not finite",
        SKIPPED,
        "test_a_step_that_is_not_finite_is_skipped",
        ("max_skipped_steps",),
        "in fp16 its scaler decides; DeepSpeed has taken the step, so the run stops",
    ),
    Row(
        "memory of a forward pass",
        "no memory for a forward pass with gradients",
        HALVED,
        "test_a_pass_that_is_too_large_is_halved",
        ("max_memory_halvings",),
        NOT_HALVED,
    ),
    Row(
        "memory of a backward pass",
        "no memory for a backward pass",
        "as above, after the step's gradients are made anew",
        "test_a_pass_that_is_too_large_is_halved",
        ("max_memory_halvings",),
        NOT_HALVED,
    ),
    Row(
        "memory of a scoring pass",
        "no memory for log-probabilities of the old policy or the reference",
        HALVED,
        "test_a_pass_that_is_too_large_is_halved",
        ("max_memory_halvings",),
        "with sharded weights the run stops",
    ),
    Row("memory of one completion", "no memory for a single completion", STOPS, "test_too_little_memory_stops"),
    Row("memory of generation", "no memory for the generation of completions", STOPS, "test_too_little_memory_stops"),
    Row(
        "checkpoint",
        "a full disk while a checkpoint is written",
        KEPT,
        "test_a_checkpoint_that_cannot_be_written",
        ("max_failed_saves",),
        "more in a row stop the run",
    ),
    Row(
        "short write",
        "a file of a checkpoint is cut short without an error",
        KEPT,
        "test_a_checkpoint_that_cannot_be_written",
        ("max_failed_saves",),
        "more in a row stop the run",
    ),
    Row(
        "last checkpoint",
        "a full disk at the last step",
        "stops with a sentence, exit code 70; earlier checkpoints stay",
        "test_the_last_checkpoint_that_cannot_be_written",
    ),
    Row(
        "log",
        "a full disk while `metrics.jsonl`, `completions.jsonl` or `health.jsonl` is written",
        "that row is left out, and a row that is cut off goes with the next one",
        "test_a_row_that_cannot_be_written",
    ),
    Row(
        "one server",
        "one of several vLLM servers is away",
        "the others get its prompts; it gets the newest adapter when it is back",
        "test_a_server_that_is_away",
        ("vllm_request_timeout",),
    ),
    Row(
        "all servers",
        "all vLLM servers are away and one comes back",
        "waits, sends the newest adapter, goes on",
        "test_a_server_that_is_away",
        ("vllm_server_timeout",),
    ),
    Row(
        "servers for good",
        "no vLLM server comes back",
        STOPS,
        "test_vllm_that_is_gone_stops",
        ("vllm_server_timeout",),
    ),
    Row(
        "adapter",
        "a full disk while the adapter for the vLLM servers is written",
        STOPS,
        "test_vllm_that_is_gone_stops",
    ),
    Row("engine", "the vLLM engine in this process dies", STOPS, "test_vllm_that_is_gone_stops"),
)

# Heading on the page to rows
TABLE: dict[str, tuple[Row, ...]] = {"Rewards": REWARDS, "Training": TRAINING}


def by_its_rows(test: Callable[..., None]) -> Callable[..., None]:
    """Parametrise a test that takes `row` with those rows of the table that name it."""
    rows = [row for part in TABLE.values() for row in part if row.test == test.__name__]
    marked = [pytest.param(row, id=row.name, marks=[pytest.mark.slow] if row.slow else []) for row in rows]
    return pytest.mark.parametrize("row", marked)(test)


def rendered(rows: tuple[Row, ...], defaults: dict[str, Any]) -> str:
    """Rows as the page shows them.

    Args:
        rows: rows of one heading.
        defaults: default of each field of the config.
    """
    lines = ["| fault | what happens | limit |", "|---|---|---|"]
    for row in rows:
        fields = [f"`{name}` ({'none' if defaults[name] is None else defaults[name]})" for name in row.limits]
        lines.append(f"| {row.fault} | {row.behaviour} | {'; '.join([*fields, *filter(None, [row.beyond])])} |")
    return "\n".join(lines) + "\n"
