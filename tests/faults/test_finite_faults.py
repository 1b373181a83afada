"""A step whose loss or gradient is not finite leaves weights and moments as they are."""

import logging
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_memory import logged
from table import Row, by_its_rows
from tiny_runs import early_letters, largest_difference, make, weights
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from grpo_ext import GRPOExtTrainer
from grpo_ext.faults import RunStopped

RUN: dict[str, Any] = {"optim": "adamw_torch", "learning_rate": 1e-2, "max_steps": 4}


class Moments(TrainerCallback):
    """Weights, moments and learning rate at the end of each step."""

    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = []
        self.moments: list[dict[str, Tensor]] = []
        self.rates: list[float] = []

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        held = kwargs["optimizer"].state_dict()["state"]
        self.weights.append(weights(kwargs["model"]))
        self.moments.append({f"{i} {key}": value.clone() for i, row in held.items() for key, value in row.items()})
        self.rates.append(kwargs["lr_scheduler"].get_last_lr()[0])


def infinite(loss: Tensor, model: Any) -> Tensor:
    """A loss that is not finite and whose gradient is."""
    return loss + math.inf


def steep(loss: Tensor, model: Any) -> Tensor:
    """A finite loss whose gradient is not."""
    return loss + (0.0 * next(model.parameters()).sum()).sqrt()


SPOILT: dict[str, Callable[[Tensor, Any], Tensor]] = {"loss": infinite, "gradient": steep}


def spoil(trainer: GRPOExtTrainer, how: Callable[[Tensor, Any], Tensor], steps: tuple[int, ...]) -> Moments:
    """Spoil the last micro-batch of some steps, from 1, and watch all of them."""
    inner = trainer._compute_loss

    def compute(model: Any, inputs: Any) -> Tensor:
        loss = inner(model, inputs)
        spoilt = trainer.state.global_step + 1 in steps and trainer.accelerator.sync_gradients
        if spoilt:
            trainer._kl_of_step = trainer._kl_of_step * math.nan
        return how(loss, model) if spoilt else loss

    trainer._compute_loss = compute
    moments = Moments()
    trainer.add_callback(moments)
    return moments


@by_its_rows
@pytest.mark.parametrize(
    "fields", [{}, {"max_grad_norm": 0.0, "kl_controller": "ziegler", "kl_target": 0.1, "beta": 0.1}], ids=["", "kl"]
)
def test_a_step_that_is_not_finite_is_skipped(
    row: Row, fields: dict[str, Any], tiny_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make(tiny_folder, tmp_path, **RUN, **fields)
    found = spoil(trainer, SPOILT[row.name], (2, 3))
    with caplog.at_level(logging.WARNING, "grpo_ext"):
        trainer.train()
    told = [record.getMessage() for record in caplog.records if "finite" in record.getMessage()]
    assert told == [
        f"Step {step}: the {row.name} is not finite, so its update is left out and weights and optimizer stay as they "
        f"are; {step - 1} in a row of at most 3 (`max_skipped_steps`)."
        for step in (2, 3)
    ]
    first, second, third, fourth = found.weights
    assert largest_difference(first, second) == largest_difference(first, third) == 0.0
    assert largest_difference(third, fourth) > 1e-4 and all(weight.isfinite().all() for weight in fourth.values())
    assert largest_difference(found.moments[0], found.moments[2]) == 0.0
    assert found.rates == [7.5e-3, 5e-3, 2.5e-3, 0.0]
    assert [line.get("faults/skipped_steps") for line in logged(trainer)[:4]] == [None, 1.0, 2.0, 2.0]
    assert math.isfinite(trainer.beta)


def test_too_many_in_a_row_stop(tiny_folder: Path, tmp_path: Path) -> None:
    trainer = make(tiny_folder, tmp_path, **RUN, max_skipped_steps=1)
    found = spoil(trainer, steep, (1, 3, 4))
    sentence = "Step 4: the gradient is not finite, 2 times in a row, more than `max_skipped_steps` 1; lower `l"
    with pytest.raises(RunStopped, match=sentence) as caught:
        trainer.train()
    assert "Stopped after step 3, which was saved." in caught.value.__notes__[0]
    assert largest_difference(weights(trainer.model), found.weights[-1]) == 0.0
    # The count goes on with the run
    again = make(tiny_folder, tmp_path, **RUN, max_skipped_steps=1)
    spoil(again, steep, (4,))
    with pytest.raises(RunStopped, match=sentence):
        again.train(resume_from_checkpoint="last")


def test_a_run_goes_on_after_a_skipped_step(tiny_folder: Path, tmp_path: Path) -> None:
    ends, fields = [], {"save_strategy": "steps", "save_steps": 2, "steps_per_generation": 4, "num_iterations": 2}
    for again in (None, "last"):
        trainer = make(tiny_folder, tmp_path, **RUN, **fields, beta=0.04)
        spoil(trainer, infinite, (2, 3))
        trainer.train(resume_from_checkpoint=again)
        ends.append(weights(trainer.model))
        assert trainer.skipped_steps == 2
        shutil.rmtree(tmp_path / "checkpoint-4")
    assert largest_difference(*ends) == 0.0


def test_a_step_that_nobody_looked_at_is_no_step(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make(tiny_folder, tmp_path, **RUN)
    monkeypatch.setattr(trainer, "_get_grad_norm", lambda model, grad_norm=None: 1.0)
    with pytest.raises(RuntimeError, match="an optimizer step without a call of `_get_grad_norm`"):
        trainer.train()


def test_half_precision_looks_for_its_scale_by_itself(tiny_folder: Path, tmp_path: Path) -> None:
    trainer = make(tiny_folder, tmp_path, reward_funcs=early_letters)
    loss, norm = torch.tensor(1.0), torch.tensor(math.inf)
    assert trainer._not_finite(loss, norm) == ["gradient"]
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu")
    assert trainer._not_finite(loss, norm) == []
    assert trainer._not_finite(loss / 0, norm) == ["loss"]
