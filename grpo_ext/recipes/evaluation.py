"""Greedy accuracy of a policy on held-out problems, by the strict and by the lenient reader."""

from contextlib import nullcontext
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel

from grpo_ext.rewards import correct, correct_strict
from grpo_ext.rewards.rows import prompt_text
from grpo_ext.rollouts.local import LocalGroups, undecodable


@torch.no_grad()
def evaluate(model: Any, tokenizer: Any, rows: Dataset, max_new_tokens: int, batch_size: int) -> dict[str, float]:
    """Answer each row greedily and compare with its `answer`.

    Args:
        model: policy.
        tokenizer: its tokenizer, padding on the left.
        rows: `prompt`, `answer` and `answer_format`.
        max_new_tokens: tokens at most.
        batch_size: rows at a time.

    Returns:
        `accuracy` (strict, the asked-for format), `accuracy_lenient` (last number), `mean_length` in tokens, and
        the number of `problems`.
    """
    training = model.training
    model.eval()
    texts, length = [], 0
    bare = model.get_base_model() if isinstance(model, PeftModel) else model
    with LocalGroups().within(bare) if undecodable(bare) is None else nullcontext():
        for start in range(0, len(rows), batch_size):
            prompts = [prompt_text(prompt, tokenizer) for prompt in rows[start : start + batch_size]["prompt"]]
            encoded = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False).to(model.device)
            ids = model.generate(
                **encoded, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id
            )[:, encoded["input_ids"].size(1) :]
            length += int((ids != tokenizer.pad_token_id).sum())
            texts += tokenizer.batch_decode(ids, skip_special_tokens=True)
    model.train(training)
    columns = {"answer": rows["answer"], "answer_format": rows["answer_format"]}

    def share(scores: list[float | None]) -> float:
        known = [score for score in scores if score is not None]
        return sum(known) / max(len(known), 1)

    return {
        "accuracy": share(correct_strict(texts, **columns)),
        "accuracy_lenient": share(correct(texts, **columns)),
        "mean_length": length / len(rows),
        "problems": len(rows),
    }
