"""A pass that runs out of memory is run in parts, and the weights are those of a run with room enough."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from small_memory import SmallMemory, failing, logged, trained
from table import Row, by_its_rows
from tiny_runs import early_letters, largest_difference, make, weights

from grpo_ext.faults import RunStopped
from grpo_ext.ops.aggregation import AGGREGATIONS
from grpo_ext.trainer import memory
from grpo_ext.trainer.memory import is_out_of_memory

# Two updates a generation, the second of them off policy; a reference
RUN: dict[str, Any] = {"steps_per_generation": 4, "num_iterations": 1, "learning_rate": 0.3, "beta": 0.04}
PADDED: dict[str, Any] = {**RUN, "scoring": "padded"}


@pytest.fixture(autouse=True)
def _no_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Garbage of the whole test session takes a second to look through."""
    monkeypatch.setattr(memory, "clear_device_cache", lambda **options: None)


def compared(folder: Path, out: Path, fields: dict[str, Any], **memory: Any) -> SmallMemory:
    """Train with room enough and without, and see that weights and logs are the same."""
    whole = make(folder, out, **fields)
    wanted = trained(whole)
    small = make(folder, out, **fields)
    watched = SmallMemory(small, **memory)
    assert largest_difference(wanted, trained(small)) <= 1e-6
    for left, right in zip(logged(whole), logged(small), strict=True):
        assert left == pytest.approx(right, rel=1e-4, abs=1e-5, nan_ok=True)
    return watched


WHERE: dict[str, dict[str, Any]] = {
    "memory of a forward pass": {"rows": 2},
    "memory of a backward pass": {"rows": 2, "backward": True},
    "memory of a scoring pass": {"rows": 2, "gradient": False},
}


@by_its_rows
def test_a_pass_that_is_too_large_is_halved(
    row: Row, tiny_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "grpo_ext"):
        small = compared(tiny_folder, tmp_path, PADDED, **WHERE[row.name])
    # Halved once, from four rows to two, for the rest of the run
    assert small.failures == 1
    assert {rows for rows, _ in small.sizes[-4:]} == {2}
    kind = "without" if "scoring" in row.name else "with"
    told = [record.getMessage() for record in caplog.records if "memory" in record.getMessage()]
    assert told == [
        f"Step 1: memory is too small for a pass {kind} gradients over 4 completions, so from now on one has at most "
        "2; loss and gradient stay those of the whole."
    ]


@pytest.mark.parametrize(
    "aggregation",
    [pytest.param(name, marks=[] if name == "token_mean" else [pytest.mark.slow]) for name in AGGREGATIONS],
)
def test_the_gradient_is_that_of_the_whole(aggregation: str, tiny_folder: Path, tmp_path: Path) -> None:
    fields = {**PADDED, "max_steps": 1, "aggregation": aggregation, "max_grad_norm": 0.0}
    # The second micro-batch fails when the first one's gradients are there
    assert compared(tiny_folder, tmp_path, fields, rows=3, backward=True, after=1).failures == 1


def test_a_part_keeps_no_activations_until_its_turn(tiny_folder: Path, tmp_path: Path) -> None:
    trainer = make(tiny_folder, tmp_path, **{**PADDED, "max_steps": 1})
    small = SmallMemory(trainer, rows=1)
    trainer.train()
    # Four rows, two, one; then each row of the two micro-batches once forwards and once with its backward
    assert [rows for rows, _ in small.sizes] == [4, 2] + [1] * 16
    assert small.failures == 2


@pytest.mark.parametrize("backward", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_shared_pass_becomes_smaller_ones(backward: bool, tiny_folder: Path, tmp_path: Path) -> None:
    fields = {**RUN, "scoring": "tree", "scoring_tokens": 10**6, "lora": not backward}
    trainer = make(tiny_folder, tmp_path, **fields)
    seen = SmallMemory(trainer)
    trainer.train()
    assert len(seen.sizes) == 2
    limit = min(tokens for _, tokens in seen.sizes) // 2
    small = compared(tiny_folder, tmp_path, fields, tokens=limit, backward=backward)
    assert small.failures >= 1
    assert all(tokens <= limit for _, tokens in small.sizes[-4:])


def told_sizes(caplog: pytest.LogCaptureFixture) -> list[str]:
    """From how many completions to how many, of each halving."""
    told = [record.getMessage() for record in caplog.records if "memory is too small" in record.getMessage()]
    return [text.partition("gradients over ")[2].partition(";")[0] for text in told]


def test_a_pack_of_single_rows_is_halved(tiny_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "steps_per_generation": 4}
    fields = {**one, "scoring": "tree", "scoring_tokens": 10**6, "beta": 0.04, "learning_rate": 0.3}
    trainer = make(tiny_folder, tmp_path, **fields)
    seen = SmallMemory(trainer)
    trainer.train()
    # The tree packs them into one row
    limit = min(tokens for _, tokens in seen.sizes) - 1
    assert compared(tiny_folder, tmp_path, fields, tokens=limit, backward=True).failures == 1
    assert told_sizes(caplog) == ["4 completions, so from now on one has at most 2"]


def test_dead_rows_of_a_pass_are_counted_with_it(
    tiny_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def one_group_in_two(completions: list[str], **kwargs: Any) -> list[float]:
        return [0.0 if i % 8 < 4 else value for i, value in enumerate(early_letters(completions))]

    fields = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "scoring": "tree", "max_steps": 1}
    whole = make(tiny_folder, tmp_path, reward_funcs=one_group_in_two, **fields)
    seen, wanted = SmallMemory(whole), trained(whole)
    small = make(tiny_folder, tmp_path, reward_funcs=one_group_in_two, **fields)
    # The dead rows are scored after the others, without gradient
    SmallMemory(small, tokens=seen.sizes[0][1] - 1, backward=True)
    assert largest_difference(wanted, trained(small)) <= 1e-6
    assert told_sizes(caplog)[0] == "8 completions, so from now on one has at most 4"


def test_a_step_over_two_generations_begins_anew_from_both(tiny_folder: Path, tmp_path: Path) -> None:
    fields = {**PADDED, "gradient_accumulation_steps": 4, "steps_per_generation": 2, "max_steps": 2}
    # In the last micro-batch of the first step, when the completions of the first two are gone
    assert compared(tiny_folder, tmp_path, fields, rows=3, backward=True, after=3).failures == 1


@by_its_rows
def test_too_little_memory_stops(row: Row, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make(tiny_folder, tmp_path, **PADDED)
    before = weights(trainer.model)
    if row.name == "memory of generation":
        monkeypatch.setattr(trainer.model, "generate", failing(1, lambda: torch.OutOfMemoryError("no"), print))
        sentence = r"outside the policy's own passes, for example while completions were made \(no\); lower `per_dev"
    else:
        SmallMemory(trainer, rows=0)
        sentence = "over 1 completions, which is not halved, because it holds a single completion; lower `per_device_"
    with pytest.raises(RunStopped, match=f"^Step 1: .*{sentence}"):
        trainer.train()
    assert largest_difference(before, weights(trainer.model)) == 0.0


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"max_memory_halvings": 0}, "`max_memory_halvings` is 0"),
        ({"use_adaptive_entropy": True}, "`use_adaptive_entropy` has counted its entropy already"),
    ],
)
def test_what_is_not_halved_stops(fields: dict[str, Any], reason: str, tiny_folder: Path, tmp_path: Path) -> None:
    trainer = make(tiny_folder, tmp_path, **PADDED, **fields)
    SmallMemory(trainer, rows=2, backward=True)
    with pytest.raises(RunStopped, match=f"Step 1: .* over 4 completions, which .* because {reason}; lower"):
        trainer.train()


def test_another_error_is_no_lack_of_memory(tiny_folder: Path, tmp_path: Path) -> None:
    assert is_out_of_memory(RuntimeError("[enforce fail] . DefaultCPUAllocator: can't allocate memory: you tried to"))
    assert is_out_of_memory(torch.OutOfMemoryError("HIP"))
    assert not is_out_of_memory(RuntimeError("CUDA error: device-side assert triggered"))
    assert not is_out_of_memory(RunStopped("A pass ran out of memory."))
    trainer = make(tiny_folder, tmp_path, **PADDED)

    def broken(*args: Any) -> None:
        raise RuntimeError("shapes do not fit")

    trainer.model.get_input_embeddings().register_forward_hook(broken)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        trainer.train()
