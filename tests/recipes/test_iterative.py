"""The reward model of a run with rounds: trained on the policy's own answers, with replay, and taken up again."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, TrainerCallback

from grpo_ext import GRPOExtConfig, GRPOExtTrainer
from grpo_ext.models import tiny_policy
from grpo_ext.models.policy import add_lora
from grpo_ext.recipes.arguments import RecipeArguments
from grpo_ext.recipes.iterative import ReplayedReward, RoundRewardArguments
from grpo_ext.rewards.rows import completion_text

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = [f"{a} + {b}" for a in range(4) for b in range(4)]


def early(completions: list[Any], **kwargs: Any) -> list[float]:
    """Right about every other time."""
    return [float(completion_text(text)[:1] < "N") for text in completions]


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    model, tokenizer = tiny_policy(seed=0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def trainer_with(learned: str, out: Path, **options: Any) -> tuple[GRPOExtTrainer, ReplayedReward]:
    model, tokenizer = tiny_policy(seed=0)
    torch.manual_seed(1)
    problems = Dataset.from_dict({"prompt": PROMPTS, "answer": [""] * len(PROMPTS)})
    arguments = {"reward_problems": 9, "reward_samples": 4, "reward_pairs": 2, "reward_learning_rate": 1e-3}
    reward = ReplayedReward(
        RoundRewardArguments(reward_model=learned, **{**arguments, **options}), problems, tokenizer, check=early
    )
    fields: dict[str, Any] = {"num_rounds": 3, "steps_per_round": 1, "beta": 0.04, "learning_rate": 0.5}
    fields |= {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "num_generations": 4}
    fields |= {"max_completion_length": 6, "use_cpu": True, "bf16": False, "optim": "sgd", "logging_steps": 1}
    fields |= {"report_to": "none", "gradient_checkpointing": False, "disable_tqdm": True, "save_strategy": "no"}
    trainer = GRPOExtTrainer(
        model=add_lora(model, 4),
        reward_funcs=[reward],
        args=GRPOExtConfig(output_dir=str(out), **fields),
        train_dataset=problems,
        processing_class=tokenizer,
    )
    trainer.round_update = reward
    return trainer, reward


class Stop(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_save = control.should_training_stop = state.global_step == 2


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def weights(model: torch.nn.Module) -> list[torch.Tensor]:
    return [weight.detach() for weight in model.parameters() if weight.requires_grad]


@pytest.mark.slow
def test_three_rounds_with_replay_and_taken_up_again(tiny_folder: Path, tmp_path: Path) -> None:
    whole, reward = trainer_with(str(tiny_folder), tmp_path / "whole")
    whole.train()
    assert [row["round"] for row in reward.history] == [1, 2, 3]
    for number, row in enumerate(reward.history):
        folder = tmp_path / "whole" / "rounds" / f"round-{number + 1}"
        new, held_out = lines(folder / "pairs.jsonl"), lines(folder / "held_out.jsonl")
        assert row["new_pairs"] == len(new) > 8
        assert not {str(pair["prompt"]) for pair in new} & {str(pair["prompt"]) for pair in held_out}
        # One in ten of what is trained on, where there are earlier pairs
        assert row["replayed"] == (0 if number == 0 else round(len(new) / 9))
        assert row["replay_share"] == pytest.approx(row["replayed"] / (row["replayed"] + len(new)))
        AutoModelForSequenceClassification.from_pretrained(folder / "reward_model")
    logs = [row for row in whole.state.log_history if "kl" in row]
    assert [row["rounds/reward_model_replayed"] for row in logs] == [row["replayed"] for row in reward.history]
    assert [abs(row["kl"]) < 1e-9 for row in logs] == [True] * 3
    bases = [
        json.loads(
            (tmp_path / "whole" / "rounds" / f"round-{number}" / "reward_model" / "reward_model.json").read_text()
        )
        for number in (1, 2, 3)
    ]
    assert bases[0]["base"] == str(tiny_folder)
    assert [Path(row["base"]).parent.name for row in bases[1:]] == ["round-1", "round-2"]

    begun, _ = trainer_with(str(tiny_folder), tmp_path / "parts")
    begun.add_callback(Stop())
    begun.train()
    resumed, again = trainer_with(str(tiny_folder), tmp_path / "parts")
    resumed.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-2"))
    assert again.history == reward.history
    assert [row["reward"] for row in resumed.state.log_history if "kl" in row] == [row["reward"] for row in logs]
    for one, other in zip(weights(whole.model), weights(resumed.model), strict=True):
        assert torch.equal(one, other)


def test_a_ready_reward_model_is_trained_on_from_round_two_or_never(tiny_folder: Path, tmp_path: Path) -> None:
    ready = AutoModelForSequenceClassification.from_pretrained(tiny_folder, num_labels=1)
    _, tokenizer = tiny_policy(seed=0)
    ready.save_pretrained(tmp_path / "ready")
    tokenizer.save_pretrained(tmp_path / "ready")
    trainer, reward = trainer_with(str(tmp_path / "ready"), tmp_path / "a")
    trainer.train()
    assert [row["round"] for row in reward.history] == [2, 3]
    trainer, reward = trainer_with(str(tmp_path / "ready"), tmp_path / "b", reward_problems=0)
    trainer.train()
    assert reward.history == [] and not (tmp_path / "b" / "rounds").exists()


def test_refusals(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`reward_problems` is 0, so nothing makes"):
        trainer_with(str(tiny_folder), tmp_path, reward_problems=0)[0].train()
    trainer, reward = trainer_with(str(tiny_folder), tmp_path)
    with pytest.raises(RuntimeError, match=r"set trainer\.round_update"):
        reward(prompts=["a"], completions=["b"])
    reward._check = lambda completions, **kwargs: [1.0] * len(completions)
    with pytest.raises(ValueError, match="no problem has both right and wrong answers"):
        trainer.train()
    for name, value in {"reward_replay": 1.0, "reward_samples": 1, "reward_problems": -1, "reward_pairs": 0}.items():
        with pytest.raises(ValueError, match=f"`{name}` is {value}"):
            RecipeArguments(**{name: value})
    with pytest.raises(ValueError, match="`reward_dtype` is 'auto'; it must be one of: bfloat16, float16, float32"):
        RecipeArguments(reward_dtype="auto")


def test_without_pairs_a_later_round_keeps_the_model(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer, reward = trainer_with(str(tiny_folder), tmp_path)
    calls: list[int] = []

    def right_only_later(completions: list[Any], **kwargs: Any) -> list[float]:
        calls.append(1)
        return early(completions) if len(calls) == 1 else [1.0] * len(completions)

    reward._check = right_only_later
    trainer.train()
    assert [row["new_pairs"] > 0 for row in reward.history] == [True, False, False]
    assert reward.state()["reward_model"].endswith("rounds/round-1/reward_model")
    assert capsys.readouterr().out.count("it stays as it is") == 2


@pytest.mark.parametrize(("processes", "timeout", "told"), [(2, 1800, True), (2, 86400, False), (1, 1800, False)])
def test_others_that_wait_for_the_pairs(
    processes: int, timeout: int, told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    reward = object.__new__(ReplayedReward)
    reward._args = RoundRewardArguments(reward_problems=4096)
    with caplog.at_level(logging.WARNING, "grpo_ext"):
        reward._warn_of_waiting(SimpleNamespace(world_size=processes, ddp_timeout=timeout))
    assert ("draws 4096 x 8 answers while the others wait" in caplog.text) == told


def test_a_named_reward_stands_beside_the_model() -> None:
    assert RecipeArguments().reward_funcs == ["correct_strict"]
    assert RecipeArguments(reward_model="x").reward_funcs == []
    assert RecipeArguments(reward_model="x", reward_funcs=["format"]).reward_funcs == ["format"]
