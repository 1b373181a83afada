"""What GRPOExtTrainer adds: advantages, regrouping, the KL controller, checks and the interrupt."""

import re
import signal
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tiny_runs import early_letters, largest_difference, make, prompts, texts, weights
from torch import Tensor

from grpo_ext import GRPOExtTrainer
from grpo_ext.faults import RunStopped
from grpo_ext.rewards import REWARDS
from grpo_ext.trainer import STATE_FILE


class Watched(GRPOExtTrainer):
    """Keeps what was generated and what was regrouped."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.windows: list[tuple[list[dict[str, Any]], list[dict[str, Any]]]] = []
        self.outputs: list[tuple[list[dict[str, Any]], dict[str, Any], Tensor]] = []
        super().__init__(*args, **kwargs)

    def _regrouped(self, window: list[dict[str, Any]]) -> list[dict[str, Any]]:
        result = super()._regrouped(window)
        self.windows.append((window, result))
        return result

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        assert self._rewards_per_func is not None
        self.outputs.append((inputs, output, self._rewards_per_func.clone()))
        return output


def rows(parts: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    keys = ("prompt_ids", "completion_ids", "completion_mask", "advantages", "group_ids")
    return [tuple(str(part[key][i].tolist()) for key in keys) for part in parts for i in range(len(part["group_ids"]))]


# Regrouping


def test_groups_are_adjacent_and_rows_stay_in_their_step(tiny_folder: Path, tmp_path: Path) -> None:
    trainer = make(tiny_folder, tmp_path, Watched, steps_per_generation=8, per_device_train_batch_size=2, max_steps=4)
    trainer.train()
    assert len(trainer.windows) == 4
    scattered = 0
    for before, after in trainer.windows:
        assert [len(part["group_ids"]) for part in after] == [len(part["group_ids"]) for part in before] == [2, 2]
        assert Counter(rows(before)) == Counter(rows(after))
        keys = torch.cat([part["group_ids"] for part in after])
        assert len(torch.unique_consecutive(keys)) == len(keys.unique())
        scattered += len(torch.unique_consecutive(torch.cat([part["group_ids"] for part in before]))) > len(
            keys.unique()
        )
    assert scattered, "the shuffle scattered no group, so this test saw nothing"


@pytest.mark.parametrize("fields", [{}, {"surrogate": "clip", "loss_type": "grpo", "beta": 0.04}], ids=["trl", "own"])
def test_regrouping_leaves_the_gradient(fields: dict[str, Any], tiny_folder: Path, tmp_path: Path) -> None:
    class AsShuffled(Watched):
        def _regrouped(self, window: list[dict[str, Any]]) -> list[dict[str, Any]]:
            super()._regrouped(window)
            return window

    fields = {"gradient_accumulation_steps": 4, "per_device_train_batch_size": 2, **fields}
    one = make(tiny_folder, tmp_path, Watched, **fields)
    start = weights(one.model)
    one.train()
    # Making a trainer seeds the samplers, so each is trained before the next is made
    other = make(tiny_folder, tmp_path, AsShuffled, **fields)
    other.train()
    assert any(rows(before) != rows(after) for before, after in one.windows)
    assert largest_difference(start, weights(one.model)) > 1e-4
    assert largest_difference(weights(one.model), weights(other.model)) <= 1e-7


# Advantages


def others_mean(rewards: Tensor) -> Tensor:
    """r_i minus the mean of the other rewards of its row."""
    return torch.stack(
        [torch.stack([row[i] - torch.cat([row[:i], row[i + 1 :]]).mean() for i in range(len(row))]) for row in rewards]
    )


def by_rank(rewards: Tensor) -> Tensor:
    """2 - 4 (rank - 1) / (n - 1), ties at their middle rank."""
    worse = (rewards.unsqueeze(1) > rewards.unsqueeze(2)).sum(2) + 0.5 * (
        (rewards.unsqueeze(1) == rewards.unsqueeze(2)).sum(2) - 1
    )
    return 2 - 4 * worse / (rewards.size(1) - 1)


@pytest.mark.parametrize(("baseline", "expected"), [("leave_one_out", others_mean), ("rank", by_rank)])
def test_own_advantages_replace_trls(baseline: str, expected: Any, tiny_folder: Path, tmp_path: Path) -> None:
    trainer = make(tiny_folder, tmp_path, Watched, advantage_baseline=baseline, scale_rewards="none")
    trainer.train()
    for _, output, rewards in trainer.outputs:
        wanted = expected(rewards[:, 0].view(-1, 4)).flatten()
        assert wanted.abs().max() > 0.01
        torch.testing.assert_close(output["advantages"], wanted.float(), rtol=1e-5, atol=1e-6)
    logged = torch.tensor(list(trainer._logs["advantages"]))
    torch.testing.assert_close(logged[-8:], trainer.outputs[-1][1]["advantages"])


def test_group_by_a_column(tiny_folder: Path, tmp_path: Path) -> None:
    dataset = prompts(level=["easy", "hard"] * 4)
    trainer = make(tiny_folder, tmp_path, Watched, dataset=dataset, group_by="level", per_device_train_batch_size=8)
    trainer.train()
    joined = 0
    for inputs, output, rewards in trainer.outputs:
        levels = [row["level"] for row in inputs]
        values = rewards[:, 0].double()
        for level in set(levels):
            own = torch.tensor([found == level for found in levels])
            wanted = (values[own] - values[own].mean()) / (values[own].std() + 1e-4)
            torch.testing.assert_close(output["advantages"][own], wanted.float(), rtol=1e-5, atol=1e-6)
            joined += own.sum() > 4
    assert joined, "no two prompts shared a level, so this test saw nothing"


def test_dead_groups_are_exactly_zero(tiny_folder: Path, tmp_path: Path) -> None:
    def all_equal(completions: list[Any], **kwargs: Any) -> list[float]:
        return [0.3] * len(completions)

    trainer = make(tiny_folder, tmp_path, Watched, reward_funcs=all_equal, advantage_baseline="mean")
    start = weights(trainer.model)
    trainer.train()
    assert all(not output["advantages"].any() for _, output, _ in trainer.outputs)
    assert largest_difference(start, weights(trainer.model)) == 0.0


def test_kl_in_the_reward_is_subtracted(tiny_folder: Path, tmp_path: Path) -> None:
    fields = {"kl_in": "reward", "kl_estimator": "k1", "beta": 0.5, "scale_rewards": "none", "learning_rate": 0.0}
    trainer = make(tiny_folder, tmp_path, Watched, **fields)
    with torch.no_grad():
        for weight in trainer.model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.02)
    trainer.train()
    _, output, rewards = trainer.outputs[0]
    ids = torch.cat([output["prompt_ids"], output["completion_ids"]], 1)
    attention = torch.cat([output["prompt_mask"], output["completion_mask"]], 1)
    size = output["completion_ids"].size(1)
    sums = []
    with torch.no_grad():
        for model in (trainer.model, trainer.ref_model):
            log_probs = model(input_ids=ids, attention_mask=attention).logits[:, -size - 1 : -1].log_softmax(-1)
            chosen = log_probs.gather(-1, output["completion_ids"].unsqueeze(-1)).squeeze(-1)
            sums.append((chosen * output["completion_mask"]).sum(1))
    kl = sums[0] - sums[1]
    assert kl.abs().max() > 0.05
    total = (rewards[:, 0] - 0.5 * kl).view(-1, 4)
    wanted = (total - total.mean(1, keepdim=True)).flatten()
    torch.testing.assert_close(output["advantages"], wanted, rtol=1e-4, atol=1e-5)
    assert trainer.state.log_history[0]["kl_in_reward"] == pytest.approx(kl.mean().item(), rel=1e-4, abs=1e-5)


# The KL controller


@pytest.mark.parametrize("resume", ["path", "newest"])
@pytest.mark.parametrize("own", [{}, {"surrogate": "clip"}], ids=["trl", "own"])
def test_adaptive_kl_moves_beta_and_survives(
    own: dict[str, str], resume: str, tiny_folder: Path, tmp_path: Path
) -> None:
    # No KL is measured before the policy moves, far below the target: beta sinks
    fields = {"kl_controller": "ziegler", "kl_target": 1.0, "beta": 0.2, "save_strategy": "steps", "save_steps": 2}
    first = make(tiny_folder, tmp_path, **own, **fields)
    first.train()
    betas = [row["beta"] for row in first.state.log_history if "beta" in row]
    assert len(betas) == 2 and 0.2 > betas[0] > betas[1] == pytest.approx(first.beta)
    checkpoint = tmp_path / "checkpoint-2"
    assert (checkpoint / STATE_FILE).is_file()

    second = make(tiny_folder, tmp_path, **own, **{**fields, "max_steps": 3})
    assert second.beta == 0.2
    second.train(resume_from_checkpoint=str(checkpoint) if resume == "path" else True)
    (after,) = [row["beta"] for row in second.state.log_history if "beta" in row and row["step"] == 3]
    assert after < betas[1]


# Mistakes are named before or at the first step


def test_a_replaced_loss_is_noticed(tiny_folder: Path, tmp_path: Path) -> None:
    class Replaced(GRPOExtTrainer):
        def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
            return sum(weight.sum() for weight in model.parameters()) * 0.0

    with pytest.raises(RuntimeError, match="ran the configured objective 0 times in place of once"):
        make(tiny_folder, tmp_path, Replaced, surrogate="clip").train()


@pytest.mark.parametrize(
    ("dataset", "fields", "message"),
    [
        (Dataset.from_dict({"question": ["a", "b"]}), {}, "no column 'prompt'.*question"),
        (Dataset.from_dict({"prompt": []}), {}, "`train_dataset` is empty"),
        (prompts(), {"group_by": "level"}, "no column 'level'"),
    ],
    ids=["no prompt", "empty", "no group_by"],
)
def test_dataset_errors(
    dataset: Dataset, fields: dict[str, Any], message: str, tiny_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        make(tiny_folder, tmp_path, dataset=dataset, **fields)


def needs_level(completions: list[Any], level: list[int], **kwargs: Any) -> list[float]:
    return [float(value) for value in level]


@pytest.mark.parametrize(
    ("function", "message"),
    [(needs_level, "'needs_level' reads a column 'level'.*prompt"), (REWARDS["correct"], "'correct'.*'answer'")],
    ids=["a parameter", "a mark"],
)
def test_a_missing_reward_column_is_named_before_training(
    function: Any, message: str, tiny_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        make(tiny_folder, tmp_path, reward_funcs=function)
    make(tiny_folder, tmp_path, reward_funcs=partial(needs_level, level=[1]))


def test_output_dir_below_a_file(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"`output_dir`.*cannot be written to"):
        make(tiny_folder, tmp_path / "file" / "run")


def too_few(completions: list[Any], **kwargs: Any) -> list[float]:
    return [0.0] * (len(completions) - 1)


def not_a_number(completions: list[Any], **kwargs: Any) -> list[float]:
    return [0.0] * 3 + [float("nan")] * (len(completions) - 3)


@pytest.mark.parametrize(
    ("function", "message"),
    [(too_few, "'too_few'.*7 rewards for 8"), (not_a_number, "scored 5 of the 8 .*'not_a_number'")],
)
def test_reward_errors_name_the_function(function: Any, message: str, tiny_folder: Path, tmp_path: Path) -> None:
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(RunStopped, match=message):
        make(tiny_folder, tmp_path, reward_funcs=function).train()
    assert signal.getsignal(signal.SIGINT) is handler


# Ctrl-C


def test_an_interrupt_finishes_the_step_saves_and_resumes(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[int] = []

    def interrupting(completions: list[Any], **kwargs: Any) -> list[float]:
        calls.append(len(completions))
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return early_letters(completions)

    handler = signal.getsignal(signal.SIGINT)
    trainer = make(tiny_folder, tmp_path, reward_funcs=interrupting, max_steps=4)
    trainer.train()
    assert trainer.interrupt.interrupted
    assert trainer.state.global_step == 2 and len(calls) == 2
    assert signal.getsignal(signal.SIGINT) is handler
    found = re.search(r"--resume_from_checkpoint (\S+)", capsys.readouterr().out)
    assert found is not None and Path(found[1]) == tmp_path / "checkpoint-2"

    resumed = make(tiny_folder, tmp_path, max_steps=4)
    resumed.train(resume_from_checkpoint=found[1])
    assert resumed.state.global_step == 4
    assert not resumed.interrupt.interrupted


def test_a_second_interrupt_stops_at_once(tiny_folder: Path, tmp_path: Path) -> None:
    def twice(completions: list[Any], **kwargs: Any) -> list[float]:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        return [float(len(text)) for text in texts(completions)]

    handler = signal.getsignal(signal.SIGINT)
    trainer = make(tiny_folder, tmp_path, reward_funcs=twice)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert trainer.state.global_step == 0
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_stopped_trainer_can_go_on(tiny_folder: Path, tmp_path: Path) -> None:
    trainer = make(tiny_folder, tmp_path, max_steps=3)
    trainer.interrupt.interrupted = True
    trainer.train()
    assert trainer.state.global_step == 3
