"""Training a reward model: it learns, replays, resumes, is saved as one model, and says how good it is."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification
from trl import RewardTrainer

from grpo_ext.data.preferences import preference_pairs
from grpo_ext.models import tiny_policy
from grpo_ext.recipes.reward_accuracy import accuracy, told
from grpo_ext.recipes.reward_training import RewardTraining, train_reward_model, with_replay
from grpo_ext.rewards.reward_model import RECORD, load_reward_model


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "tiny"
    model, tokenizer = tiny_policy(seed=0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


PAIRS = preference_pairs("train", 64)
HELD_OUT = preference_pairs("test", 48)
FAST = RewardTraining(learning_rate=3e-3, epochs=2.0, batch_size=8)


def test_learns_what_held_out_pairs_confirm(base: Path, tmp_path: Path) -> None:
    folder, summary = train_reward_model(base, PAIRS, tmp_path / "rm", held_out=HELD_OUT, options=FAST)
    assert summary["accuracy"] > 0.75 and summary["interval"][0] > 0.55, summary
    assert summary["losses"][0] > 0.5 > summary["losses"][-1] and len(summary["losses"]) == summary["steps"] == 16
    assert set(summary["by_kind"]) == set(HELD_OUT["kind"]) and summary["held_out_pairs"] == 48
    assert json.loads((folder / RECORD).read_text())["accuracy"] == summary["accuracy"]
    assert sorted(path.name for path in folder.glob("*.safetensors")) == ["model.safetensors"]
    assert not (folder / "checkpoints").exists()
    # What was measured is what is on disk
    assert accuracy(load_reward_model(str(folder)), HELD_OUT)["accuracy"] == summary["accuracy"]
    assert told(summary).startswith(f"{summary['accuracy']:.1%} of 48 held-out pairs")


def test_a_finished_model_is_returned_and_a_trained_one_trained_on(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = train_reward_model(base, PAIRS, tmp_path / "one", options=FAST)
    weights = (first.folder / "model.safetensors").read_bytes()
    again = train_reward_model(base, PAIRS, tmp_path / "one", options=replace(FAST, micro_batch_size=2, save_steps=1))
    assert again == first and weights == (first.folder / "model.safetensors").read_bytes()
    assert f"{first.folder} holds this reward model already; it is taken as it is." in capsys.readouterr().out
    new = preference_pairs("train", 27, seed=5)
    for data, name in (((new, None), "pairs"), ((PAIRS, HELD_OUT), "held_out")):
        with pytest.raises(
            ValueError, match=rf"holds a reward model of other data \({name}\); use another output_dir"
        ):
            train_reward_model(base, data[0], tmp_path / "one", held_out=data[1], options=FAST)
    with pytest.raises(ValueError, match=r"a reward model that was trained with `epochs` 2\.0, not 9\.0; use"):
        train_reward_model(base, PAIRS, tmp_path / "one", options=replace(FAST, epochs=9.0))
    with pytest.raises(ValueError, match="was trained with `base` "):
        train_reward_model("elsewhere", PAIRS, tmp_path / "one", options=FAST)
    assert told(first.summary) == "Warning: its accuracy is not known, because no pairs were held out."
    second = train_reward_model(first.folder, new, tmp_path / "two", replay=PAIRS, options=FAST)
    # 3 of 30 are a tenth
    assert (second.summary["new_pairs"], second.summary["replayed"], second.summary["replay_share"]) == (27, 3, 0.1)
    # It goes on from what was learned, where a new head would begin at ln 2
    assert second.summary["losses"][0] < 0.6 < first.summary["losses"][0]


@pytest.mark.parametrize(("new", "old", "share", "count"), [(90, 64, 0.1, 10), (90, 5, 0.1, 5), (10, 64, 0.5, 10),
                                                            (10, 64, 0.0, 0), (4, 64, 0.1, 0)])  # fmt: skip
def test_replayed_share(new: int, old: int, share: float, count: int) -> None:
    fresh, earlier = preference_pairs("train", new, seed=1), preference_pairs("test", old)
    mixed, replayed = with_replay(fresh, earlier, share, seed=0)
    assert (len(mixed), replayed) == (new + count, count)
    assert mixed["chosen"][:new] == fresh["chosen"][:]
    prompts = earlier["prompt"][:]
    assert all(prompt in prompts for prompt in mixed["prompt"][new:])
    if 0 < count < old:
        assert with_replay(fresh, earlier, share, seed=0)[0][:] == mixed[:]
        assert with_replay(fresh, earlier, share, seed=1)[0][:] != mixed[:]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForSequenceClassification.from_pretrained(folder).state_dict()


def test_a_resumed_training_is_the_uninterrupted_one(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = RewardTraining(learning_rate=3e-3, batch_size=8, save_steps=3)
    whole = train_reward_model(base, PAIRS, tmp_path / "whole", options=options)

    class Stopped(Exception):
        pass

    step, steps = RewardTrainer.training_step, []

    def stop(self: RewardTrainer, *args: Any) -> torch.Tensor:
        steps.append(1)
        if len(steps) == 8:
            raise Stopped
        return step(self, *args)

    # Stops in the eighth step, after the checkpoint of the sixth
    with monkeypatch.context() as patched:
        patched.setattr(RewardTrainer, "training_step", stop)
        with pytest.raises(Stopped):
            train_reward_model(base, PAIRS, tmp_path / "part", options=options)
    checkpoints = tmp_path / "part" / "checkpoints"
    assert not (tmp_path / "part" / RECORD).exists()
    assert sorted(path.name for path in checkpoints.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-6"]
    with pytest.raises(ValueError, match=r"holds a reward model of other data \(pairs\)"):
        train_reward_model(base, HELD_OUT, tmp_path / "part", options=options)
    steps.clear()
    monkeypatch.setattr(RewardTrainer, "training_step", stop)
    part = train_reward_model(base, PAIRS, tmp_path / "part", options=options)
    assert len(steps) == 2
    assert part.summary["losses"] == whole.summary["losses"]
    assert (part.folder / "model.safetensors").read_bytes() == (whole.folder / "model.safetensors").read_bytes()


def test_an_adapter_is_merged_into_one_model(base: Path, tmp_path: Path) -> None:
    options = RewardTraining(learning_rate=5e-3, batch_size=8, lora_r=8, epochs=2.0)
    folder, summary = train_reward_model(base, PAIRS, tmp_path / "rm", held_out=HELD_OUT, options=options)
    assert not list(folder.glob("adapter*"))
    loaded = accuracy(load_reward_model(str(folder)), HELD_OUT)
    assert loaded["accuracy"] == summary["accuracy"] and loaded["margin"] == pytest.approx(summary["margin"], abs=1e-4)
    before, after = tiny_policy(seed=0)[0].model.state_dict(), weights(folder)
    changed = [name for name, weight in before.items() if not torch.equal(weight, after[f"model.{name}"])]
    assert changed and all("proj" in name for name in changed)


def test_long_pairs_are_left_out_and_counted(base: Path, tmp_path: Path) -> None:
    long = {**PAIRS[0], "rejected": [{"role": "assistant", "content": "x" * 300}]}
    mixed = Dataset.from_list([*PAIRS.select(range(7)), long])
    options = RewardTraining(batch_size=8, max_length=250)
    assert train_reward_model(base, mixed, tmp_path / "rm", options=options).summary["left_out"] == 1
    with pytest.raises(ValueError, match="none of 1 pairs fits into `max_length` 5 tokens"):
        train_reward_model(base, PAIRS.select([0]), tmp_path / "no", options=RewardTraining(max_length=5))


def test_ties_count_one_half_and_prompts_are_the_units() -> None:
    rows = [{"prompt": prompt, "chosen": chosen, "rejected": "b"} for prompt, chosen in zip("ppq", "aab", strict=True)]

    def reader(prompts: list[str], completions: list[str]) -> list[float | None]:
        return [{"a": 1.0, "b": 0.0}[text] for text in completions]

    found = accuracy(reader, Dataset.from_list(rows))  # type: ignore[arg-type]
    # p is right twice, q is a tie: (1 + 0.5) / 2
    assert found["accuracy"] == 0.75 and found["margin"] == pytest.approx(2 / 3)
    assert (found["held_out_pairs"], found["held_out_prompts"]) == (3, 2)
    assert found["interval"][0] <= 0.75 <= found["interval"][1]


def test_refusals(base: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "three")
    AutoModelForSequenceClassification.from_pretrained(base, num_labels=3).save_pretrained(tmp_path / "three")
    with pytest.raises(ValueError, match="is a classifier with 3 labels; a reward model has one output"):
        train_reward_model(tmp_path / "three", PAIRS, tmp_path / "rm")
    with pytest.raises(ValueError, match="no new pairs"):
        train_reward_model(base, PAIRS.select([]), tmp_path / "rm")
    with pytest.raises(ValueError, match="`epochs` of the reward model is 0"):
        RewardTraining(epochs=0)
    with pytest.raises(ValueError, match="`replay_share` is 1"):
        RewardTraining(replay_share=1.0)
    with pytest.raises(ValueError, match="`micro_batch_size` 3 must divide `batch_size` 16"):
        RewardTraining(micro_batch_size=3)
    with pytest.raises(ValueError, match="`dtype` is 'float33'; it must be one of: bfloat16, float16, float32"):
        RewardTraining(dtype="float33")
