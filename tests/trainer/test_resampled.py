"""Groups without spread are drawn anew: which rows come out, with what they are trained, and what is counted."""

from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from datasets import Dataset
from resampled_runs import Recorded, normalised, plain_logps, plain_step, policy_of, run, scripted, worth
from tiny_runs import PROMPTS, early_letters, largest_difference, make, policy, prompts, weights

from grpo_ext import GRPOExtTrainer
from grpo_ext.rollouts.resampling import Group
from grpo_ext.trainer.advantages import AdvantageTrainer

DYNAMIC = {"resampling": "dynamic_sampling"}
DEAD = [False] * 4
# Four groups in a generation. Two are dead; the round that follows draws ceil(2 * 5 / 3) = 4, of which two remain.
SURPLUS = [[True, False, True, False], [True] * 4, [False, True, True, False]]


def reward_of(asked: str, answer: str) -> float:
    return 1.0 if asked in PROMPTS[:4] else worth(answer)


def half_dead(prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
    return [reward_of(*pair) for pair in zip(prompts, completions, strict=True)]


def resampled(found: Recorded, name: str) -> list[float]:
    return [row[f"resampling/{name}"] for row in found.logs if "resampling/rounds" in row]


def check_tokens(found: Recorded, waiting: int) -> None:
    """Every token of TRL's count was trained on, was discarded, or waits in a group."""
    left = [group.rows for group in found.trainer._carried]
    assert len(left) == waiting
    tokens = [*resampled(found, "tokens_trained"), *resampled(found, "tokens_discarded")]
    tokens += [float(rows["prompt_mask"].sum() + rows["completion_mask"].sum()) for rows in left]
    assert sum(tokens) == found.logs[-1]["num_tokens"]


def test_prompts_whose_rewards_agree_are_replaced(tiny_folder: Path, tmp_path: Path) -> None:
    found = run(tiny_folder, tmp_path, half_dead, max_steps=3, resampling_rounds=30, **DYNAMIC)
    plain = run(tiny_folder, tmp_path, half_dead, max_steps=3)
    assert any(set(plain.asked(step)) & set(PROMPTS[:4]) for step in range(3))
    for step in range(3):
        asked, answers = found.asked(step), found.answers(step)
        assert not set(asked) & set(PROMPTS[:4])
        rewards = [worth(answer) for answer in answers]
        wanted = torch.tensor(normalised(rewards, [4] * 4)).double()
        assert (wanted.view(4, 4).abs().max(1).values > 0.1).all()
        assert torch.allclose(found.batches[step]["advantages"].double(), wanted, rtol=0, atol=1e-6)
        assert found.batches[step]["group_ids"].tolist() == [row // 4 for row in range(16)]
    assert resampled(found, "live_groups") == [4.0] * 3 and resampled(found, "shortfall") == [0.0] * 3
    first = sum(asked in PROMPTS[:4] for asked in plain.asked(0)) / 4
    assert resampled(found, "groups_replaced")[0] == first > 0


def test_rounds_are_limited_and_the_shortfall_is_logged(
    tiny_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reward = scripted([DEAD] * 100)
    found = run(tiny_folder, tmp_path, reward, resampling_rounds=2, **DYNAMIC)
    assert len(reward.prompts) == 2 * (1 + 2)
    for step, first in enumerate((0, 3)):
        assert found.asked(step) == reward.prompts[first]
        assert not found.batches[step]["advantages"].any()
    assert resampled(found, "shortfall") == [4.0, 4.0] and resampled(found, "groups_replaced") == [0.0, 0.0]
    assert largest_difference(found.weights[0], found.weights[-1]) == 0.0
    assert caplog.text.count("4 of 4 groups are still without spread") == 1


def test_a_round_draws_what_the_share_of_live_groups_asks_for(tiny_folder: Path, tmp_path: Path) -> None:
    reward = scripted([[False, True, True, True], [False] * 2, [True] * 4])
    found = run(tiny_folder, tmp_path, reward, max_steps=1, **DYNAMIC)
    # ceil(1 * 5 / 4) = 2, then ceil(1 * 7 / 4) = 2
    assert [len(call) // 4 for call in reward.prompts] == [4, 2, 2]
    assert found.asked(0)[:4] == reward.prompts[2][:4] and found.asked(0)[4:] == reward.prompts[0][4:]
    assert resampled(found, "rounds") == [2.0]
    check_tokens(found, waiting=1)
    drawn = [call[::4] for call in reward.prompts[1:]]
    assert len(set(drawn[0] + drawn[1])) == 4


@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_steps_equal_those_written_out_from_the_final_rows(beta: float, tiny_folder: Path, tmp_path: Path) -> None:
    reward = scripted(SURPLUS)
    found = run(tiny_folder, tmp_path, reward, beta=beta, **DYNAMIC)
    assert [len(call) // 4 for call in reward.prompts] == [4, 4, 4]
    assert resampled(found, "carried") == [0.0, 2.0] and resampled(found, "rounds") == [1.0, 0.0]
    # Which calls the groups of each generation came from, and which place there
    sources = [[(0, 0), (1, 0), (0, 2), (1, 1)], [(1, 2), (2, 1), (2, 2), (1, 3)]]
    for step, groups in enumerate(sources):
        batch = found.batches[step]
        assert found.asked(step) == [reward.prompts[call][4 * place + i] for call, place in groups for i in range(4)]
        rewards = [reward.rewards[call][4 * place + i] for call, place in groups for i in range(4)]
        by_policy = [plain_logps(policy_of(tiny_folder, made), batch) for made in found.weights[:2]]
        # The second call was made by the first policy
        makers = [0 if call < 2 else 1 for call, _ in groups for _ in range(4)]
        old = [by_policy[maker][row].detach() for row, maker in enumerate(makers)]
        if step == 1:
            moved = [(a - b).abs().max().item() for a, b in zip(*by_policy, strict=True)]
            assert min(moved) > 1e-3
            for row, values in enumerate(old):
                kept = batch["old_per_token_logps"][row][batch["completion_mask"][row].bool()]
                assert torch.allclose(kept, values, rtol=0, atol=1e-5)
        else:
            assert "old_per_token_logps" not in batch
        advantages = normalised(rewards, [4] * 4)
        model = policy_of(tiny_folder, found.weights[step])
        wanted = plain_step(model, batch, advantages, old, policy(tiny_folder), beta, 0.3)
        assert largest_difference(wanted, found.weights[step]) > 1e-3
        assert largest_difference(wanted, found.weights[step + 1]) < 2e-6


def test_carried_groups_serve_the_next_generation_only(tiny_folder: Path, tmp_path: Path) -> None:
    # Two are left over; the next generation needs one of them, the one after that one more
    reward = scripted([*SURPLUS[:2], [True, True, True, False], [True, True, True, False]])
    found = run(tiny_folder, tmp_path, reward, max_steps=3, **DYNAMIC)
    assert resampled(found, "carried") == [0.0, 1.0, 0.0] and resampled(found, "rounds") == [1.0, 0.0, 1.0]
    assert found.asked(2)[12:] == reward.prompts[4][:4]
    discarded = resampled(found, "tokens_discarded")
    assert discarded[1] > 0
    check_tokens(found, waiting=1)


def test_another_run_takes_no_group_of_the_one_before(tiny_folder: Path, tmp_path: Path) -> None:
    reward = scripted([*SURPLUS[:2], [False, True, True, True]])
    found = run(tiny_folder, tmp_path, reward, max_steps=1, **DYNAMIC)
    assert len(found.trainer._carried) == 2
    found.trainer.train()
    (again,) = (row for row in found.trainer.state.log_history if "loss" in row)
    assert (again["resampling/carried"], again["resampling/groups_replaced"]) == (0.0, 1.0)


def test_deterministic(tiny_folder: Path, tmp_path: Path) -> None:
    runs = [run(tiny_folder, tmp_path, scripted(SURPLUS), seed=seed, **DYNAMIC) for seed in (3, 3, 4)]
    assert largest_difference(*(weights(found.trainer.model) for found in runs[:2])) == 0.0
    assert runs[0].asked(0) == runs[1].asked(0) != runs[2].asked(0)


def test_unset_changes_nothing(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_it = run(tiny_folder, tmp_path, early_letters)
    assert not any("resampling" in name for row in with_it.logs for name in row)
    generate = AdvantageTrainer._generate_and_score_completions
    monkeypatch.setattr(GRPOExtTrainer, "_generate_and_score_completions", generate)
    without = run(tiny_folder, tmp_path, early_letters)
    assert largest_difference(weights(with_it.trainer.model), weights(without.trainer.model)) == 0.0


def test_where_all_groups_are_live_nothing_changes(tiny_folder: Path, tmp_path: Path) -> None:
    plain = run(tiny_folder, tmp_path, scripted([]), advantage_baseline="mean")
    found = run(tiny_folder, tmp_path, scripted([]), **DYNAMIC)
    assert largest_difference(weights(plain.trainer.model), weights(found.trainer.model)) == 0.0


def test_metrics_of_trl_are_those_of_the_first_round(tiny_folder: Path, tmp_path: Path) -> None:
    plain = run(tiny_folder, tmp_path, scripted([DEAD]), max_steps=1, advantage_baseline="mean").logs[0]
    found = run(tiny_folder, tmp_path, scripted([DEAD]), max_steps=1, **DYNAMIC).logs[0]
    same = [name for name in plain if name.split("/")[0] in ("reward", "reward_std", "rewards", "completions")]
    assert len(same) > 8
    assert {name: found[name] for name in same} == {name: plain[name] for name in same}
    assert found["frac_reward_zero_std"] == plain["frac_reward_zero_std"] == 1.0
    assert found["resampling/reward"] != plain["reward"]
    assert found["num_tokens"] > plain["num_tokens"]


def test_the_table_of_completions_holds_the_rows_trained_on(tiny_folder: Path, tmp_path: Path) -> None:
    # `log_extra` comes from TRL; the second round does not call it
    plain = scripted([[True, False, True, False]])

    def rewarding(log_extra: Any, **kwargs: Any) -> list[float]:
        if not plain.prompts:
            log_extra("note", [f"note {i}" for i in range(len(kwargs["prompts"]))])
        return plain(**kwargs)

    # Advantages of a round are not those of the batch
    fields = {"max_steps": 1, "log_completions": True, "scale_rewards": "batch"}
    found = run(tiny_folder, tmp_path, rewarding, **fields, **DYNAMIC)
    table = pd.read_parquet(tmp_path / "completions" / "completions_00001.parquet")
    assert table["prompt"].tolist() == found.asked(0) and table["completion"].tolist() == found.answers(0)
    assert table["advantage"].tolist() == found.batches[0]["advantages"].tolist()
    assert table["rewarding"].tolist()[4:8] == pytest.approx(plain.rewards[1][:4])
    notes = [f"note {i}" if i // 4 in (0, 2) else None for i in range(16)]
    assert [note if isinstance(note, str) else None for note in table["note"]] == notes


@pytest.mark.parametrize("remove", [False, True])
def test_new_rows_are_what_the_data_loader_hands_over(remove: bool, tiny_folder: Path, tmp_path: Path) -> None:
    dataset = prompts(conversational=True, answer=[float(i) for i in range(8)], deep=[{"a": [i]} for i in range(8)])
    fields = {"dataset": dataset, "remove_unused_columns": remove, "per_device_train_batch_size": 16}
    trainer = make(tiny_folder, tmp_path, **fields, **DYNAMIC)
    batch = next(iter(trainer.get_train_dataloader()))
    new = trainer._new_inputs(8, list(batch[0]))
    assert len(batch) == len(new) == 32 and (set(batch[0]) == {"prompt"}) == remove
    rows = {str(row["prompt"]): row for row in new}
    assert Counter(str(row["prompt"]) for row in new) == {str(prompt): 4 for prompt in dataset["prompt"]}
    assert all(rows[str(row["prompt"])] == row and list(row) == list(new[0]) for row in batch)
    assert all(new[i] == new[i - i % 4] and (i % 4 == 0 or new[i] is not new[i - 1]) for i in range(32))


INTERPLAY: dict[str, dict[str, Any]] = {
    "iterations": {"num_iterations": 2, "max_steps": 4},
    "steps_per_generation": {"steps_per_generation": 4, "per_device_train_batch_size": 4, "max_steps": 4},
    "truncated": {"mask_truncated_completions": True},
    "lora_reference": {"lora": True, "beta": 0.04},
    "own_loss": {"kl_estimator": "k2", "beta": 0.04},
    "kl_in_reward": {"kl_in": "reward", "beta": 0.04},
    "batch_scale": {"scale_rewards": "batch"},
    "padded": {"scoring": "padded"},
    "conversational": {"dataset": prompts(conversational=True)},
    "moving_reference": {"beta": 0.04, "sync_ref_model": True, "ref_model_sync_steps": 1},
}


@pytest.mark.parametrize("name", INTERPLAY)
def test_with_other_options(name: str, tiny_folder: Path, tmp_path: Path) -> None:
    found = run(tiny_folder, tmp_path, scripted(SURPLUS), **{**INTERPLAY[name], **DYNAMIC})
    assert len(found.batches) == 2 and sum(resampled(found, "groups_replaced")) > 0
    for batch in found.batches:
        assert batch["num_items_in_batch"] == batch["completion_mask"].sum()
        assert {len(value) for value in batch.values() if value.dim() > 0} == {16}
        assert batch["advantages"].isfinite().all()
    assert largest_difference(found.weights[0], found.weights[-1]) > 1e-4


def test_batch_scale_is_that_of_the_final_rows(tiny_folder: Path, tmp_path: Path) -> None:
    reward = scripted([[True, False, True, False]])
    found = run(tiny_folder, tmp_path, reward, max_steps=1, scale_rewards="batch", **DYNAMIC)
    sources = [(0, 0), (1, 0), (0, 2), (1, 1)]
    rewards = torch.tensor([[reward.rewards[call][4 * place + i] for i in range(4)] for call, place in sources])
    wanted = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std() + 1e-4)
    assert torch.allclose(found.batches[0]["advantages"], wanted.flatten(), rtol=0, atol=1e-6)


def test_a_kl_in_the_reward_is_that_of_the_maker(tiny_folder: Path, tmp_path: Path) -> None:
    reward = scripted(SURPLUS)
    found = run(tiny_folder, tmp_path, reward, beta=0.5, kl_in="reward", kl_estimator="k2", **DYNAMIC)
    batch, sources = found.batches[1], [(1, 2), (2, 1), (2, 2), (1, 3)]
    rewards = [reward.rewards[call][4 * place + i] for call, place in sources for i in range(4)]
    made, now = (plain_logps(policy_of(tiny_folder, values), batch) for values in found.weights[:2])
    # The reference is the first policy, which made the carried rows: their KL is 0
    kl = [((b - a).square() / 2).sum().item() for a, b in zip(made, now, strict=True)]
    assert min(kl) > 1e-4
    calls = [call for call, _ in sources for _ in range(4)]
    penalised = [r - 0.5 * k * (call == 2) for r, k, call in zip(rewards, kl, calls, strict=True)]
    wanted = torch.tensor(normalised(penalised, [4] * 4))
    assert not torch.allclose(wanted, torch.tensor(normalised(rewards, [4] * 4)), rtol=0, atol=1e-3)
    assert torch.allclose(batch["advantages"], wanted, rtol=0, atol=1e-4)


def test_a_moving_reference_is_asked_again(tiny_folder: Path, tmp_path: Path) -> None:
    moving = {"beta": 0.04, "sync_ref_model": True, "ref_model_sync_steps": 1, "ref_model_mixup_alpha": 1.0}
    found = run(tiny_folder, tmp_path, scripted(SURPLUS), **moving, **DYNAMIC)
    # After the first step the reference is the policy of that time, for carried rows too
    batch = found.batches[1]
    wanted = plain_logps(policy_of(tiny_folder, found.weights[1]), batch)
    assert resampled(found, "carried")[1] == 2.0
    for row, values in enumerate(wanted):
        kept = batch["ref_per_token_logps"][row][batch["completion_mask"][row].bool()]
        assert torch.allclose(kept, values, rtol=0, atol=1e-5)


def test_evaluation_is_left_alone(tiny_folder: Path, tmp_path: Path) -> None:
    reward = scripted([DEAD] * 10)
    trainer = make(tiny_folder, tmp_path, reward_funcs=reward, per_device_eval_batch_size=16, **DYNAMIC)
    trainer.evaluate(Dataset.from_dict({"prompt": PROMPTS[:4]}))
    assert len(reward.prompts) == 1


def test_with_sharded_weights_nothing_is_carried(tiny_folder: Path, tmp_path: Path) -> None:
    trainer = make(tiny_folder, tmp_path, **DYNAMIC)
    trainer.is_deepspeed_enabled = True
    left, unused = [Group({}, True), Group({}, True)], [Group({}, False)]
    trainer._keep(left, unused)
    assert trainer._carried == [] and len(unused) == 3
