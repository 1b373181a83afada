"""Answers of a model in memory: a sample is its problem's own, and follows the distribution that was asked for."""

import random
from typing import Any

import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from grpo_ext.data.arithmetic import arithmetic
from grpo_ext.evaluation.greedy import evaluate
from grpo_ext.evaluation.local import LocalModel
from grpo_ext.evaluation.questions import Answer, Question, batches, questions
from grpo_ext.models import tiny_policy
from grpo_ext.rollouts.sampling import tokens_at
from grpo_ext.rollouts.vllm.requests import Sampling
from real_vllm import chi_square

ROWS = list(arithmetic("test", 5))
SAMPLING = Sampling(temperature=0.9, top_p=0.95, max_tokens=12)


def local(sampling: Sampling = SAMPLING, seed: int = 0, lora_r: int | None = None) -> LocalModel:
    model, tokenizer = tiny_policy(seed=0, lora_r=lora_r)
    # Random weights alone give a nearly uniform policy, which would hide a wrong temperature
    with torch.no_grad():
        next(model.parameters()).mul_(2)
    return LocalModel(model, tokenizer, sampling, seed)


def by_place(asked: list[Question], answers: list[Answer]) -> dict[Any, str]:
    return {(one.problem, one.sample): answer.text for one, answer in zip(asked, answers, strict=True)}


@pytest.mark.parametrize("lora_r", [None, 4], ids=["full", "lora"])
def test_neither_order_nor_batch_changes_a_sample(lora_r: int | None) -> None:
    made = local(lora_r=lora_r)
    asked = questions(ROWS, greedy=False, samples=4)
    wanted = by_place(asked, made.complete(asked))
    assert len(set(wanted.values())) > 15
    mixed = random.Random(0).sample(asked, len(asked))
    for size in (1, 7):
        for part in batches(mixed, size):
            assert by_place(part, made.complete(part)).items() <= wanted.items()
    # Nor does the global generator; another seed does
    torch.manual_seed(123)
    assert by_place(asked, made.complete(asked)) == wanted
    assert by_place(asked, local(seed=1, lora_r=lora_r).complete(asked)) != wanted


@pytest.mark.parametrize(
    "fields", [{}, {"temperature": 0.5}, {"top_k": 5}, {"top_p": 0.6, "temperature": 1.3}, {"min_p": 0.1}], ids=str
)
def test_a_model_that_cannot_share_prompts_draws_the_same(fields: dict[str, Any]) -> None:
    made = local(Sampling(**{"temperature": 1.0, "max_tokens": 10, **fields}))
    asked = questions(ROWS, greedy=False, samples=3)
    wanted = made.complete(asked)
    made.shares_prompts = False
    assert made.complete(asked) == wanted


@pytest.mark.parametrize("fields", [{"temperature": 0.6}, {"temperature": 0.9, "top_k": 7}], ids=str)
def test_samples_follow_the_softmax(fields: dict[str, Any]) -> None:
    made = local(Sampling(max_tokens=1, **fields))
    asked = questions(ROWS[:1], greedy=False, samples=1500)
    text = made.tokenizer.apply_chat_template(ROWS[0]["prompt"], add_generation_prompt=True, tokenize=False)
    ids = torch.tensor([made.tokenizer(text, add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        logits = made.model(ids).logits[0, -1]
    probs = (logits / fields["temperature"]).softmax(-1).double()
    if "top_k" in fields:
        probs[probs < probs.topk(7).values[-1]] = 0
        probs /= probs.sum()
    rows = [made.tokenizer.convert_tokens_to_ids(answer.text or "<eos>") for answer in made.complete(asked)]
    counts = torch.bincount(torch.tensor(rows), minlength=len(probs)).double()
    special = torch.tensor(made.tokenizer.all_special_ids)
    merged = torch.cat([counts, counts[special].sum()[None]]), torch.cat([probs, probs[special].sum()[None]])
    keep = torch.ones(len(probs) + 1, dtype=torch.bool)
    keep[special] = False
    assert chi_square(merged[0][keep], merged[1][keep]) > 1e-4
    other = (logits / 0.75).softmax(-1).double()
    assert chi_square(counts[keep[:-1]], other[keep[:-1]]) < 1e-6


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8).filter(lambda row: sum(row) > 1e-3), st.floats(0, 1 - 2**-53))
def test_a_number_picks_the_token_whose_share_it_lies_in(row: list[float], number: float) -> None:
    probs = torch.tensor([row], dtype=torch.float64) / sum(row)
    token = tokens_at(probs, torch.tensor([number])).item()
    assert probs[0, token] > 0
    before, after = probs[0, :token].sum().item(), probs[0, : token + 1].sum().item()
    assert before - 1e-12 <= number <= after + 1e-12


def test_the_models_own_generation_config_has_no_say() -> None:
    made = local()
    asked = questions(ROWS, greedy=True, samples=2)
    wanted = [made.complete(part) for part in batches(asked, 8)]
    made.model.generation_config.update(temperature=0.1, top_k=1, repetition_penalty=9.0, min_new_tokens=None)
    assert [made.complete(part) for part in batches(asked, 8)] == wanted


def test_an_answer_ends_at_its_end_token() -> None:
    made = local(Sampling(temperature=1.5, max_tokens=40))
    asked = questions(ROWS, greedy=False, samples=10)
    answers = made.complete(asked)
    ended = [answer for answer in answers if answer.ended]
    assert 0 < len(ended) < len(answers)
    assert all(answer.tokens == 40 for answer in answers if not answer.ended)
    assert all(len(answer.text) <= answer.tokens - 1 for answer in ended)


def test_a_failure_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    made = local()
    made.model.train()

    def interrupted(**options: Any) -> None:
        assert not made.model.training
        raise KeyboardInterrupt

    monkeypatch.setattr(made.model, "generate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        made.complete(questions(ROWS, greedy=True, samples=0))
    assert made.model.training


def test_the_quick_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    made = local()
    made.model.train()
    rows = Dataset.from_list(ROWS)
    found = evaluate(made.model, made.tokenizer, rows, 12, 2)
    assert made.model.training
    assert set(found) == {
        "accuracy", "accuracy_interval", "accuracy_lenient", "accuracy_lenient_interval", "mean_length", "truncated",
        "problems",
    }  # fmt: skip
    asked = questions(ROWS, greedy=True, samples=0)
    answers = LocalModel(made.model, made.tokenizer, Sampling(max_tokens=12)).complete(asked)
    assert found["mean_length"] == sum(answer.tokens for answer in answers) / 5
    assert found["truncated"] == sum(not answer.ended for answer in answers) / 5
    # Two in the format, one outside it
    said = [f"#### {row['answer']}" for row in ROWS[:2]] + [f"It is {ROWS[2]['answer']}", "no", ""]
    monkeypatch.setattr(LocalModel, "complete", lambda _, asked: [Answer(said[q.problem], 1, True) for q in asked])
    found = evaluate(made.model, made.tokenizer, rows, 12, 2)
    assert (found["accuracy"], found["accuracy_lenient"], found["problems"]) == (0.4, 0.6, 5)
    assert found["accuracy_interval"] == [0.0, 0.8] and found["accuracy_lenient_interval"] == [0.2, 1.0]
    with pytest.raises(ValueError, match="no problem has a gold answer"):
        evaluate(made.model, made.tokenizer, rows.map(lambda row: {"answer": "none"}), 4, 5)
