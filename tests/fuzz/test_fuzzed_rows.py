"""Rows that are no prompts: a run, or one sentence that names the row, before training where that can be."""

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, IterableDataset
from hypothesis import HealthCheck, example, given, settings
from outcomes import attempt, verdict
from transformers import GPT2Config, GPT2LMHeadModel
from wrong_rows import COLUMNS, DATASETS, column, said

from grpo_ext import GRPOExtConfig, GRPOExtTrainer
from grpo_ext.checks import check_dataset, check_drawn, extreme_rows
from grpo_ext.checks.rows import prompt_fault
from grpo_ext.models import tiny_tokenizer
from grpo_ext.rewards import REWARDS
from grpo_ext.rollouts.checked import COLUMNS as COLUMNS_OF_ROLLOUTS

# All 8 rows in one generation, so that none is left out by chance
ALL_ROWS = {"per_device_train_batch_size": 16}
SAMPLE = list(DATASETS)[::6]


def tried(name: str, folder: Path) -> tuple[str, str]:
    make, words = DATASETS[name]
    rows = make()
    whole = not isinstance(rows, IterableDataset) and name not in ("one row", "nulls left out")
    reward = {"reward": REWARDS["correct"]} if "answer" in name else {}
    found = attempt(folder, ALL_ROWS if whole else {"per_device_train_batch_size": 2}, rows, **reward)
    return verdict(found, *words), found.stage


@pytest.mark.parametrize("name", SAMPLE)
def test_a_sample_of_datasets(name: str, tmp_path: Path) -> None:
    tried(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(DATASETS) - set(SAMPLE)))
def test_other_datasets(name: str, tmp_path: Path) -> None:
    found, stage = tried(name, tmp_path)
    looked_at_first = not name.startswith(("stream", "transform")) and "answer" not in name
    assert found == "ran" or stage == ("trainer" if looked_at_first else "training")


@settings(max_examples=30, suppress_health_check=list(HealthCheck))
@given(COLUMNS)
@example([said("a"), [{"role": "user", "content": None, "tool_calls": [{"name": "f"}]}]])
@example([said("a"), None, []])
@example([["a"], None])
@example([said("a"), [{"role": "user"}]])
@example([said("a"), [{"content": "b"}]])
@example([said("a"), [None]])
def test_a_column_is_judged_as_its_rows(prompts: list[Any]) -> None:
    """Column-wise and shuffled, the first bad row is the one that a look at each row finds."""
    whole = Dataset.from_dict({"prompt": prompts})
    for rows in (whole, whole.shuffle(seed=0), whole.select(range(len(whole) - 1, -1, -1))):
        bad = [number for number, row in enumerate(rows) if prompt_fault(row["prompt"]) is not None]
        if not bad:
            check_dataset(rows, "train_dataset")
            continue
        with pytest.raises(ValueError, match=rf"^`train_dataset`, row {bad[0]}: column 'prompt' "):
            check_dataset(rows, "train_dataset")


@settings(max_examples=15, suppress_health_check=list(HealthCheck))
@given(COLUMNS.filter(lambda prompts: all(prompt_fault(prompt) is None for prompt in prompts)))
def test_extreme_rows(prompts: list[Any]) -> None:
    rows = Dataset.from_dict({"prompt": prompts})
    sizes = [
        sum(len((part["content"] or "").encode()) for part in prompt)
        if isinstance(prompt, list)
        else len(prompt.encode())
        for prompt in prompts
    ]
    found = extreme_rows(rows, 2)
    assert found == sorted(set(found)) and 0 in found
    assert {max(sizes), min(sizes)} <= {sizes[number] for number in found}


def test_kinds_are_not_mixed_in_a_batch() -> None:
    check_drawn([{"prompt": "a"}, {"prompt": "b"}])
    with pytest.raises(ValueError, match=r"mixes text and lists of messages"):
        check_drawn([{"prompt": "a"}, {"prompt": said("b")}])
    with pytest.raises(ValueError, match=r"^Row 1 of this batch has no column 'kind'"):
        check_drawn([{"prompt": "a", "kind": 1}, {"prompt": "b"}], "kind")


# What the dataset alone does not tell


def test_fewer_rows_than_a_generation(tmp_path: Path) -> None:
    found = attempt(tmp_path, {"per_device_train_batch_size": 18})
    assert (
        verdict(found, "train_dataset") == "ours"
        and "8 rows" in str(found.error)
        and "9 different" in str(found.error)
    )
    assert attempt(tmp_path, ALL_ROWS).stage == "ran"


def test_evaluation_rows_are_looked_at_too(tmp_path: Path) -> None:
    found = attempt(tmp_path, {}, eval_dataset={"hard": column(["a", None])()})
    assert verdict(found, "row 1") == "ours" and "hard" in str(found.error)


@pytest.mark.parametrize("kind", ["text", "messages"])
def test_a_prompt_beyond_a_table_of_positions(kind: str, tmp_path: Path) -> None:
    """GPT-2 would index past its table; a model with rotary positions goes on."""
    tokenizer = tiny_tokenizer()
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_positions=32, n_embd=16, n_layer=1, n_head=2))
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    texts = ["a", "b" * 40, "c"] if kind == "text" else [said("a"), said("b" * 40), said("c")]
    config = GRPOExtConfig(
        output_dir=str(tmp_path / "out"),
        use_cpu=True,
        bf16=False,
        num_generations=2,
        per_device_train_batch_size=2,
        max_completion_length=3,
        report_to="none",
    )
    with pytest.raises(
        ValueError, match=r"^`train_dataset`, row 1: column 'prompt' has \d+ tokens, .* the 32 positions"
    ):
        GRPOExtTrainer(
            model,
            REWARDS["correct"],
            config,
            Dataset.from_dict({"prompt": texts, "answer": ["1"] * 3}),
            processing_class=tokenizer,
        )


def test_a_template_that_refuses(tmp_path: Path) -> None:
    rows = [said("a"), said("a"), said("b", "wizard")] + [said("a")] * 5
    tokenizer = tiny_tokenizer()
    refuses = "{% if m['role'] == 'wizard' %}{{ raise_exception('no wizards') }}{% endif %}x"
    tokenizer.chat_template = "{% for m in messages %}" + refuses + "{% endfor %}"
    found = attempt(tmp_path, ALL_ROWS, Dataset.from_dict({"prompt": rows}), tokenizer=tokenizer)
    assert verdict(found, "row 2") == "ours" and "no wizards" in str(found.error)


def empty_completions(prompts: list[Any], trainer: Any) -> dict[str, Any]:
    return {name: [[5] if name == "prompt_ids" else []] * len(prompts) for name in COLUMNS_OF_ROLLOUTS}


def test_completions_without_a_token(tmp_path: Path) -> None:
    found = attempt(tmp_path, {}, rollout_func=empty_completions)
    assert verdict(found, "rollout_func") == "ours" and "completion 0" in str(found.error)


@pytest.mark.parametrize("returned", [None, [], {}, {"completion_ids": [[1]]}, {"completion_ids": 3, "prompt_ids": 3}])
def test_rollouts_that_are_none(returned: Any, tmp_path: Path) -> None:
    found = attempt(tmp_path, {}, rollout_func=lambda prompts, trainer: returned)
    assert verdict(found, "rollout_func") == "ours"


@pytest.mark.parametrize("answer", [None, "", "9" * 50_000, "\x00", "[[[["], ids=lambda answer: str(answer)[:4])
@pytest.mark.parametrize("reward", ["correct", "correct_final", "correct_strict"])
def test_answers_of_every_kind(reward: str, answer: str | None) -> None:
    scores = REWARDS[reward](completions=["", "a", "\\boxed{" * 50], answer=[answer] * 3)
    assert len(scores) == 3
