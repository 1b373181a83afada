"""Groups that grow where rewards disagree, what resampling refuses, and a rollout function of one's own."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, IterableDataset
from resampled_runs import normalised, plain_logps, plain_step, policy_of, run, scripted
from tiny_runs import PROMPTS, QUIET, early_letters, largest_difference, make, policy, prompts, tiny_tokenizer

from grpo_ext import GRPOExtConfig, GRPOExtTrainer

ADAPTIVE = {"resampling": "adaptive_group_size", "num_generations": 8}
DYNAMIC = {"resampling": "dynamic_sampling"}
STEP = {"max_steps": 1, **ADAPTIVE}


def by_call(*calls: list[float]) -> Any:
    """Rewards written out for each call."""
    left = list(calls)

    def written(completions: list[Any], **kwargs: Any) -> list[float]:
        assert len(left[0]) == len(completions)
        return left.pop(0)

    return written


def test_rows_go_to_the_prompts_whose_rewards_disagree(tiny_folder: Path, tmp_path: Path) -> None:
    # Two prompts of 8 begin with 2 each; the first one disagrees and gets the 12 that are left
    found = run(tiny_folder, tmp_path, by_call([0.0, 1.0, 1.0, 1.0], [0.0, 1.0] * 6), **STEP)
    batch, asked = found.batches[0], found.asked(0)
    assert batch["group_ids"].tolist() == [0] * 14 + [1] * 2
    assert len(set(asked[:14])) == len(set(asked[14:])) == 1 and asked[0] != asked[-1]
    # Seven of each: the mean is 1/2, the Bessel-corrected deviation √(14/4/13) = 0.51887
    wanted = torch.tensor([-0.96343, 0.96343] * 7 + [0.0, 0.0])
    assert torch.allclose(batch["advantages"], wanted, rtol=0, atol=1e-5)
    metrics = {name: value for name, value in found.logs[0].items() if name.startswith("resampling/")}
    assert metrics == {
        "resampling/budget": 12.0,
        "resampling/groups_grown": 1.0,
        "resampling/group_size_min": 2.0,
        "resampling/group_size_max": 14.0,
        "resampling/rounds": 1.0,
        "resampling/live_groups": 1.0,
        "resampling/shortfall": 1.0,
        "resampling/groups_replaced": 0.0,
        "resampling/carried": 0.0,
        "resampling/tokens_trained": found.logs[0]["num_tokens"],
        "resampling/tokens_discarded": 0.0,
        "resampling/reward": 9 / 16,
    }
    assert found.logs[0]["reward"] == 0.75


@pytest.mark.parametrize("live", [(False, False), (True, True)])
def test_where_none_or_all_disagree_all_grow(live: tuple[bool, bool], tiny_folder: Path, tmp_path: Path) -> None:
    reward = scripted([live], size=3)
    found = run(tiny_folder, tmp_path, reward, initial_group_size=3, **STEP)
    assert [len(call) for call in reward.prompts] == [6, 10]
    assert found.batches[0]["group_ids"].tolist() == [0] * 8 + [1] * 8
    assert found.logs[0]["resampling/groups_grown"] == 2.0


@pytest.mark.parametrize("aggregation", [None, "group_sum"])
def test_a_step_equals_that_written_out(aggregation: str | None, tiny_folder: Path, tmp_path: Path) -> None:
    reward = scripted([[True, False, True, False]], size=2)
    fields = {"aggregation": aggregation, "per_device_train_batch_size": 16, "initial_group_size": 2}
    found = run(tiny_folder, tmp_path, reward, **fields, **STEP)
    sizes, (first, second), batch = [14, 2, 14, 2], reward.rewards, found.batches[0]
    assert batch["group_ids"].tolist() == [0] * 14 + [1] * 2 + [2] * 14 + [3] * 2
    rewards = [*first[:2], *second[:12], *first[2:4], *first[4:6], *second[12:], *first[6:]]
    model = policy_of(tiny_folder, found.weights[0])
    old = [values.detach() for values in plain_logps(model, batch)]
    advantages = normalised(rewards, sizes)
    wanted = plain_step(model, batch, advantages, old, policy(tiny_folder), 0.0, 0.3, sizes if aggregation else None)
    assert largest_difference(wanted, found.weights[0]) > 1e-3
    assert largest_difference(wanted, found.weights[1]) < 2e-6 * (8 if aggregation else 1)


def test_each_reward_is_normalised_in_groups_of_different_size(tiny_folder: Path, tmp_path: Path) -> None:
    # The sum agrees in both groups; on its own each reward disagrees in the first
    one = by_call([0.0, 1.0, 1.0, 1.0], [0.0, 1.0] * 6)
    other = by_call([1.0, 0.0, 0.5, 0.5], [0.25] * 12)
    fields = {"multi_objective_aggregation": "normalize_then_sum", **STEP}
    found = run(tiny_folder, tmp_path, [one, other], **fields)
    assert found.batches[0]["group_ids"].tolist() == [0] * 14 + [1] * 2
    columns = [[0.0, 1.0] * 7 + [1.0] * 2, [1.0, 0.0] + [0.25] * 12 + [0.5] * 2]
    total = torch.tensor([normalised(column, [14, 2]) for column in columns], dtype=torch.float64).sum(0)
    wanted = (total - total.mean()) / (total.std() + 1e-4)
    assert torch.allclose(found.batches[0]["advantages"].double(), wanted, rtol=0, atol=1e-6)


def test_the_initial_size_is_a_quarter_and_at_least_two(tmp_path: Path) -> None:
    fields = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "resampling": "adaptive_group_size"}
    sizes = [
        GRPOExtConfig(num_generations=n, per_device_train_batch_size=n, **fields).first_group_size for n in (4, 16)
    ]
    assert sizes == [2, 4]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "rounds": ({**DYNAMIC, "resampling_rounds": 0}, "`resampling_rounds` is 0"),
    "group_by": ({**DYNAMIC, "group_by": "topic"}, "`group_by` 'topic'"),
    "baseline": ({**DYNAMIC, "advantage_baseline": "none"}, "`advantage_baseline` 'none'"),
    "inclusion": ({**DYNAMIC, "group_generation": "stochastic_beam", "scale_rewards": "none"}, "'stochastic_beam'"),
    "search": ({**ADAPTIVE, "group_generation": "beam"}, "group_generation"),
    "not_adaptive": ({**DYNAMIC, "initial_group_size": 2}, "`initial_group_size` is 2, but only"),
    "one": ({**ADAPTIVE, "initial_group_size": 1}, "`initial_group_size` is 1"),
    "whole": ({**ADAPTIVE, "initial_group_size": 8}, "`initial_group_size` is 8"),
    "pairs": ({**ADAPTIVE, "num_generations": 2}, "`initial_group_size` is 2"),
    "name": ({"resampling": "dynamic"}, "dynamic_sampling"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_the_config(name: str, tiny_folder: Path, tmp_path: Path) -> None:
    fields, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as error:
        make(tiny_folder, tmp_path, **{"per_device_train_batch_size": 8, **fields})
    assert str(error.value).endswith(".") and "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["dynamic_sampling", "adaptive_group_size"])
def test_groups_that_straddle_processes(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GRPOExtConfig, "world_size", property(lambda config: 2))
    fields = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "resampling": kind}
    fields |= {"num_generations": 4, "steps_per_generation": 2}
    if kind == "adaptive_group_size":
        with pytest.raises(ValueError, match="2 processes; use one process"):
            GRPOExtConfig(per_device_train_batch_size=4, **fields)
        return
    GRPOExtConfig(per_device_train_batch_size=2, **fields)
    with pytest.raises(ValueError, match=r"num_generations in \[2, 3, 6\] .*per_device_train_batch_size=6\."):
        GRPOExtConfig(per_device_train_batch_size=3, **fields)


def images() -> Dataset:
    return prompts(conversational=True, image=[None] * len(PROMPTS))


def streaming() -> IterableDataset:
    return prompts().to_iterable_dataset()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({**DYNAMIC, "dataset": streaming}, "streaming `train_dataset`"),
        ({**DYNAMIC, "dataset": images}, "column 'image'"),
        ({**ADAPTIVE, "dataset": images}, "column 'image'"),
    ],
)
def test_refused_with_a_dataset(fields: dict[str, Any], message: str, tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        make(tiny_folder, tmp_path, **{**fields, "dataset": fields["dataset"](), "per_device_train_batch_size": 8})


def test_growth_reads_a_stream(tiny_folder: Path, tmp_path: Path) -> None:
    reward = scripted([[True, False]], size=2)
    found = run(tiny_folder, tmp_path, reward, dataset=streaming(), **STEP)
    assert found.logs[0]["resampling/group_size_max"] == 14.0


def in_turns(folder: Path, out: Path, reward: Any, fields: dict[str, Any], **turns: Any) -> GRPOExtTrainer:
    fields = {**QUIET, "per_device_train_batch_size": 8, **fields}
    return GRPOExtTrainer(
        model=policy(folder),
        reward_funcs=reward,
        args=GRPOExtConfig(output_dir=str(out), **fields),
        train_dataset=prompts(),
        processing_class=tiny_tokenizer(),
        **turns,
    )


def rollouts(asked: list[str], trainer: Any) -> dict[str, Any]:
    """Random letters, of which every other one is an environment's."""
    tokenizer = tiny_tokenizer()
    prompt_ids = [tokenizer(text)["input_ids"] for text in asked]
    lengths = torch.randint(1, 9, (len(asked),)).tolist()
    completions = [[*torch.randint(20, 60, (length,)).tolist(), tokenizer.eos_token_id] for length in lengths]
    return {
        "prompt_ids": prompt_ids,
        "completion_ids": completions,
        "logprobs": [[-1.0] * len(ids) for ids in completions],
        "env_mask": [[i % 2 for i in range(len(ids))] for ids in completions],
        "length": lengths,
    }


def test_a_rollout_function_makes_every_round(tiny_folder: Path, tmp_path: Path) -> None:
    script, given = scripted([[True, False, False, True], [True] * 4]), []

    def rewarding(length: list[int], **kwargs: Any) -> list[float]:
        given.append(length)
        return script(**kwargs)

    trainer = in_turns(tiny_folder, tmp_path, rewarding, DYNAMIC, rollout_func=rollouts)
    trainer.model.train()
    batch = trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))
    assert batch["num_items_in_batch"] == (batch["completion_mask"] * batch["tool_mask"]).sum()
    sources = [(0, 0), (1, 0), (1, 1), (0, 3)]
    lengths = [given[call][4 * place + i] + 1 for call, place in sources for i in range(4)]
    assert batch["completion_mask"].sum(1).tolist() == lengths
    assert (batch["sampling_per_token_logps"] == -batch["completion_mask"].float()).all()


def test_refused_with_turns(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a `rollout_func` is given groups"):
        in_turns(tiny_folder, tmp_path, early_letters, ADAPTIVE, rollout_func=rollouts)
    # TRL asks for a chat template with tools before it takes an environment
    trainer = make(tiny_folder, tmp_path, **DYNAMIC)
    trainer.environment_factories = {None: object}
    with pytest.raises(ValueError, match="an `environment_factory` decides"):
        trainer._check_rows()
