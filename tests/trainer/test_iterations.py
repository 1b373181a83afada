"""Rounds: the reference renewed at the start of each, what hangs on it, and runs that are taken up again."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig
from tiny_runs import QUIET, early_letters, largest_difference, make, policy, prompts, tiny_tokenizer, weights
from torch import Tensor
from transformers import TrainerCallback, set_seed

from grpo_ext import GRPOExtConfig, GRPOExtTrainer
from grpo_ext.trainer.iterations import REFERENCE_FILE, ROUND_FILE, undisturbed

ROUNDS = {"num_rounds": 2, "steps_per_round": 2, "max_steps": -1, "beta": 0.04, "learning_rate": 0.5}


class Policies(TrainerCallback):
    """The trained weights after each step."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Tensor]] = []

    def on_step_end(self, *args: Any, model: Any, **kwargs: Any) -> None:
        self.seen.append(weights(model))


class Stop(TrainerCallback):
    """Ends the run after a step, with a checkpoint."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_save = control.should_training_stop = state.global_step == self.step


class Noisy:
    """An update that leaves random states and flags elsewhere, as another trainer does."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.restored: list[dict[str, Any]] = []

    def begin(self, number: int, trainer: Any) -> dict[str, float]:
        set_seed(number)
        trainer.accelerator.gradient_state.sync_gradients = True
        torch.rand(3), random.random(), np.random.rand()
        self.calls.append(number)
        return {"accuracy": 0.5 + number}

    def state(self) -> dict[str, Any]:
        return {"calls": self.calls}

    def restore(self, state: dict[str, Any], trainer: Any) -> None:
        self.restored.append(state)


def logged(trainer: Any, name: str) -> list[float]:
    return [row[name] for row in trainer.state.log_history if name in row]


def reference(trainer: Any) -> dict[str, Tensor]:
    """The reference's weights under the names of the policy's."""
    if trainer.ref_model is not None:
        return {name: weight.detach().clone() for name, weight in trainer.ref_model.named_parameters()}
    named = trainer.accelerator.unwrap_model(trainer.model).named_parameters()
    return {name.replace(".ref.", ".default."): weight.detach().clone() for name, weight in named if ".ref." in name}


@pytest.mark.parametrize("lora", [True, False])
def test_the_reference_is_the_policy_at_the_start_of_each_round(lora: bool, tiny_folder: Path, tmp_path: Path) -> None:
    trainer = make(tiny_folder, tmp_path, lora=lora, **ROUNDS)
    policies = Policies()
    trainer.add_callback(policies)
    first = weights(trainer.model)
    assert largest_difference(first, reference(trainer)) == 0
    trainer.train()
    assert trainer.state.global_step == 4
    assert largest_difference(policies.seen[1], reference(trainer)) == 0
    assert largest_difference(first, reference(trainer)) > 1e-3
    kl = logged(trainer, "kl")
    assert abs(kl[0]) < 1e-9 and abs(kl[2]) < 1e-9
    assert kl[1] > 1e-6 and kl[3] > 1e-6
    assert logged(trainer, "rounds/round") == [1, 1, 2, 2]


def test_without_rounds_the_reference_stays(tiny_folder: Path, tmp_path: Path) -> None:
    trainer = make(tiny_folder, tmp_path, lora=True, beta=0.04, learning_rate=0.5, max_steps=4)
    first = reference(trainer)
    trainer.train()
    assert largest_difference(first, reference(trainer)) == 0
    assert all(value > 1e-6 for value in logged(trainer, "kl")[1:])


def test_a_new_adapter_gets_a_reference_of_its_own(tiny_folder: Path, tmp_path: Path) -> None:
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = GRPOExtTrainer(
        model=policy(tiny_folder),
        reward_funcs=early_letters,
        args=GRPOExtConfig(output_dir=str(tmp_path), **{**QUIET, **ROUNDS, "learning_rate": 5.0}),
        train_dataset=prompts(),
        processing_class=tiny_tokenizer(),
        peft_config=config,
    )
    assert largest_difference(weights(trainer.model), reference(trainer)) == 0
    trainer.train()
    kl = logged(trainer, "kl")
    assert abs(kl[2]) < 1e-9 < 1e-7 < min(kl[1], kl[3])
    assert not any(weight.requires_grad for name, weight in trainer.model.named_parameters() if ".ref." in name)


# Inside a round and between two; a run of all weights has its reference in a model of its own
@pytest.mark.parametrize(("lora", "at"), [(True, 1), (True, 2), (False, 2), (False, 3)])
def test_a_resumed_run_equals_the_uninterrupted_one(lora: bool, at: int, tiny_folder: Path, tmp_path: Path) -> None:
    whole = make(tiny_folder, tmp_path / "whole", lora=lora, **ROUNDS)
    whole.round_update = Noisy()
    whole.train()
    begun = make(tiny_folder, tmp_path / "parts", lora=lora, **ROUNDS)
    begun.round_update = Noisy()
    begun.add_callback(Stop(at))
    begun.train()
    checkpoint = tmp_path / "parts" / f"checkpoint-{at}"
    assert (checkpoint / ROUND_FILE).is_file() and (checkpoint / REFERENCE_FILE).is_file()
    resumed = make(tiny_folder, tmp_path / "parts", lora=lora, **ROUNDS)
    resumed.round_update = update = Noisy()
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert largest_difference(weights(whole.model), weights(resumed.model)) == 0
    assert largest_difference(reference(whole), reference(resumed)) == 0
    for name in ("kl", "reward", "rounds/round", "grad_norm"):
        assert logged(resumed, name) == logged(whole, name)
    # A round that had begun is not begun again
    assert update.restored == [{"calls": [0] if at < 3 else [0, 1]}]
    assert update.calls == ([1] if at < 3 else [])


@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_an_adapter_is_taken_up_again_without_rounds_too(beta: float, tiny_folder: Path, tmp_path: Path) -> None:
    fields = {"beta": beta, "learning_rate": 0.5, "max_steps": 3, "lora": True}
    whole = make(tiny_folder, tmp_path / "whole", **fields)
    whole.train()
    begun = make(tiny_folder, tmp_path / "parts", **fields)
    begun.add_callback(Stop(2))
    begun.train()
    resumed = make(tiny_folder, tmp_path / "parts", **fields)
    resumed.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-2"))
    assert largest_difference(weights(whole.model), weights(resumed.model)) == 0


def test_an_update_leaves_the_run_as_it_was(tiny_folder: Path, tmp_path: Path) -> None:
    runs = []
    for update in (None, Noisy()):
        trainer = make(tiny_folder, tmp_path, lora=True, **ROUNDS)
        trainer.round_update = update
        trainer.train()
        runs.append(trainer)
    assert runs[1].round_update.calls == [0, 1]
    assert largest_difference(weights(runs[0].model), weights(runs[1].model)) == 0
    assert logged(runs[1], "rounds/accuracy") == [0.5, 1.5]


def test_undisturbed_puts_everything_back(tiny_folder: Path, tmp_path: Path) -> None:
    accelerator = make(tiny_folder, tmp_path).accelerator
    set_seed(3)
    accelerator.gradient_state.sync_gradients = False
    with undisturbed(accelerator):
        set_seed(5)
        accelerator.gradient_state.sync_gradients = True
    found = (random.random(), float(np.random.rand()), torch.rand(1).item())
    set_seed(3)
    assert found == (random.random(), float(np.random.rand()), torch.rand(1).item())
    assert accelerator.gradient_state.sync_gradients is False


def test_completions_scored_by_the_old_reference_are_forgotten(tiny_folder: Path, tmp_path: Path) -> None:
    trainer = make(tiny_folder, tmp_path, lora=True, **ROUNDS)
    trainer._buffered_inputs, trainer._carried = [{}], [object()]
    trainer.renew_reference()
    assert trainer._buffered_inputs is None and trainer._carried == []


def test_waiting_groups_do_not_cross_a_round(tiny_folder: Path, tmp_path: Path) -> None:
    """Dynamic sampling keeps live groups for the next generation; none may come with the old reference's scores."""
    rounds: list[int] = []

    def first_group_only_at_first(completions: list[Any], trainer_state: Any, **kwargs: Any) -> list[float]:
        rounds.append(trainer_state.global_step)
        many = rounds.count(trainer_state.global_step) > 1
        return [float(row % 2) if many or row < 4 else 0.0 for row in range(len(completions))]

    fields = {**ROUNDS, "steps_per_round": 1, "resampling": "dynamic_sampling"}
    trainer = make(tiny_folder, tmp_path, lora=True, reward_funcs=first_group_only_at_first, **fields)
    carried: list[int] = []

    class Seen(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            carried.append(len(trainer._carried))

    trainer.add_callback(Seen())
    trainer.train()
    assert carried == [1, 1] and logged(trainer, "resampling/carried") == [0, 0]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"num_rounds": 0}, "`num_rounds` is 0"),
        ({"num_rounds": 1, "steps_per_round": 3}, "set num_rounds to 2 or more"),
        ({"num_rounds": 2, "max_steps": 5}, "do not fit together"),
        ({"num_rounds": 2, "max_steps": -1}, "do not fit together"),
        ({"num_rounds": 2, "steps_per_round": 2, "max_steps": 5}, "max_steps that is num_rounds times as much"),
        ({"num_rounds": 2, "steps_per_round": 0, "max_steps": -1}, "`steps_per_round` 0"),
        ({"num_rounds": 2, "steps_per_round": 3, "max_steps": -1, "num_iterations": 2}, "lasts for 2 optimizer steps"),
        ({"num_rounds": 2, "max_steps": 4, "sync_ref_model": True, "beta": 0.1}, "`sync_ref_model` is True"),
    ],
)
def test_refusals(fields: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=named):
        GRPOExtConfig(output_dir=str(tmp_path), **{**QUIET, **fields})


def test_steps_follow_from_rounds(tmp_path: Path) -> None:
    for fields in ({"steps_per_round": 3, "max_steps": -1}, {"max_steps": 6}, {"steps_per_round": 3, "max_steps": 6}):
        config = GRPOExtConfig(output_dir=str(tmp_path), **{**QUIET, "num_rounds": 2, **fields})
        assert (config.steps_per_round, config.max_steps) == (3, 6)


def test_refusals_of_the_trainer(tiny_folder: Path, tmp_path: Path) -> None:
    without = make(tiny_folder, tmp_path / "a", lora=True, **{**ROUNDS, "beta": 0.0})
    with pytest.raises(ValueError, match="there is no reference to renew"):
        without.train()
    plain = make(tiny_folder, tmp_path / "b", lora=True, beta=0.04, save_strategy="steps", save_steps=1, max_steps=1)
    plain.train()
    rounds = make(tiny_folder, tmp_path / "b", lora=True, **ROUNDS)
    with pytest.raises(ValueError, match=f"has no {ROUND_FILE}"):
        rounds.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-1"))
    begun = make(tiny_folder, tmp_path / "c", lora=True, **ROUNDS)
    begun.add_callback(Stop(1))
    begun.train()
    other = make(tiny_folder, tmp_path / "c", lora=True, **{**ROUNDS, "steps_per_round": 3})
    with pytest.raises(ValueError, match="of a run with 2; set that number"):
        other.train(resume_from_checkpoint=str(tmp_path / "c" / "checkpoint-1"))
