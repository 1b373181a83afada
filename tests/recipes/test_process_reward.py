"""The process reward model: labels, a classifier that learns them, and the recipe from end to end."""

import json
import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForTokenClassification

from grpo_ext.data.arithmetic import arithmetic
from grpo_ext.models import tiny_policy, tiny_tokenizer
from grpo_ext.recipes.process_reward import (
    ProcessRewardArguments,
    changed_solutions,
    label_changed,
    label_sampled,
    main,
    told,
)
from grpo_ext.recipes.process_training import Example, accuracy, train
from grpo_ext.rewards.calculations import check_calculations
from grpo_ext.rewards.process_model import ModelReward, load_process_model, written


def marked(count: int, seed: int) -> list[Example]:
    """Steps that are good when they hold a z, with a step without a label between them."""
    draw = random.Random(seed)
    examples = []
    for _ in range(count):
        good = [draw.random() < 0.5 for _ in range(3)]
        steps = ["".join(draw.choices("abcdef", k=4)) + ("z" if value else "y") for value in good]
        labels: list[float | None] = [float(value) for value in good]
        labels[1] = None
        examples.append(Example("q", steps, labels))
    return examples


def test_a_classifier_learns_labels(tiny_folder: Path) -> None:
    torch.manual_seed(0)
    model = AutoModelForTokenClassification.from_pretrained(tiny_folder, num_labels=2, dtype=torch.float32)
    held_out = marked(64, seed=1)
    reader = ModelReward(model, tiny_tokenizer())
    before = accuracy(reader, held_out)
    losses = train(model, tiny_tokenizer(), marked(192, seed=0), 3, 16, 5e-3)
    after = accuracy(reader, held_out)
    assert len(losses) == 36 and losses[-1] < 0.1 < losses[0]
    assert before is not None and after is not None
    assert before["accuracy"] < 0.8 < 0.95 < after["accuracy"]
    assert after["steps"] == 128 and 0.5 <= after["majority"] < 0.65


def test_nothing_held_out_is_not_measured_and_a_constant_is_warned_of(tiny_folder: Path) -> None:
    model = AutoModelForTokenClassification.from_pretrained(tiny_folder, num_labels=2, dtype=torch.float32)
    reader = ModelReward(model, tiny_tokenizer())
    found = accuracy(reader, [Example("q", ["ab", "c"], [None, None])])
    assert found is None and "not measured" in told(found) and "Warning" not in told(found)
    half = {"accuracy": 0.5, "majority": 0.5, "steps": 2}
    assert "50.0% of 2 steps" in told(half) and "no better than a constant" in told(half)
    assert "Warning" not in told({**half, "accuracy": 0.6})


def test_the_first_loss_by_hand(tiny_folder: Path) -> None:
    torch.manual_seed(0)
    model = AutoModelForTokenClassification.from_pretrained(tiny_folder, num_labels=2, dtype=torch.float32)
    model.dropout.p = 0.0
    example = Example("q", ["ab", "c", "def"], [0.25, None, 1.0])
    ids, ends = written("q", example.steps, tiny_tokenizer())
    with torch.no_grad():
        logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    expected = -(0.75 * logs[ends[0], 0] + 0.25 * logs[ends[0], 1] + logs[ends[2], 1]) / 2
    losses = train(model, tiny_tokenizer(), [example], 1, 16, 1e-3)
    assert losses == [pytest.approx(expected.item(), abs=1e-5)]


def test_changed_answers_are_half_right() -> None:
    problems = arithmetic("train", 100, difficulty="two_step")
    found = changed_solutions(problems, 2, seed=0)
    assert [row for row, _ in found] == [row for row in range(100) for _ in range(2)]
    examples = label_changed(problems, ProcessRewardArguments(source="changed", solutions=2))
    labels = [label for example in examples for label in example.labels]
    known = [label for label in labels if label is not None]
    # A changed line is wrong, others are right, the answer has no label
    assert len(known) == 400 and 0.4 < sum(known) / 400 < 0.6 and labels.count(None) == 200
    for example in examples:
        assert example.labels == [
            None if check_calculations(step) is None else float(check_calculations(step)) for step in example.steps
        ]


@pytest.mark.parametrize("labels", ["calculations", "rollouts_soft"])
def test_solutions_of_a_policy(labels: str) -> None:
    model, tokenizer = tiny_policy(seed=0)
    problems = arithmetic("train", 3)
    args = ProcessRewardArguments(labels=labels, solutions=2, rollouts=2, max_completion_length=40)
    torch.manual_seed(0)
    examples = label_sampled(model, tokenizer, problems, args)
    assert len(examples) == 6 and all(len(e.steps) == len(e.labels) for e in examples)
    assert [example.prompt for example in examples] == [problems[row]["prompt"] for row in (0, 0, 1, 1, 2, 2)]
    if labels == "rollouts_soft":
        known = [label for example in examples for label in example.labels]
        assert known and set(known) <= {0.0, 0.5, 1.0}


def test_end_to_end(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"model_name_or_path": tiny_folder, "output_dir": tmp_path / "run", "source": "changed", "problems": 8,
               "held_out": 4, "solutions": 2, "epochs": 1, "batch_size": 8}  # fmt: skip
    assert main([word for key, value in options.items() for word in (f"--{key}", str(value))]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["held_out"]["steps"] == 16 and len(summary["losses"]) == 2
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
    reward = load_process_model(str(tmp_path / "run" / "model"))
    example = label_changed(arithmetic("test", 1, difficulty="two_step"), ProcessRewardArguments(source="changed"))[0]
    (scores,) = reward.scores([written(example.prompt, example.steps, reward.tokenizer, reward.tag)])
    assert all(0 < score < 1 for score in scores)
    printed = capsys.readouterr().out
    assert "Held out: " in printed and "more frequent label" in printed


def test_refusals(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="use source='policy'"):
        ProcessRewardArguments(source="changed", labels="rollouts_soft")
    with pytest.raises(ValueError, match="`problems` is 0"):
        ProcessRewardArguments(problems=0)
    with pytest.raises(ValueError, match="`labels` is 'model'"):
        ProcessRewardArguments(labels="model")
    options = {"model_name_or_path": tiny_folder, "output_dir": tmp_path / "run", "problems": 2, "held_out": 1,
               "max_completion_length": 8}  # fmt: skip
    with pytest.raises(ValueError, match="found nothing to label in 8 solutions"):
        main([word for key, value in options.items() for word in (f"--{key}", str(value))])
