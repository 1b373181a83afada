"""Answers from a model in this process, whose samples depend on the problem and not on the batch around it."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from grpo_ext.evaluation.questions import GREEDY, Answer, Question
from grpo_ext.rewards.rows import prompt_text
from grpo_ext.rollouts.local import LocalGroups, undecodable
from grpo_ext.rollouts.sampling import tokens_at
from grpo_ext.rollouts.vllm.requests import Sampling


class LocalModel:
    """A model in memory.

    Each token of a sample is drawn by inverse transform with a number that is a digest of seed, problem, sample and
    place. So the batch changes a sample only where its rounding changes a logit enough to move a boundary across
    that number.

    Args:
        model: policy or its peft wrapper.
        tokenizer: its tokenizer, padding on the left.
        sampling: how tokens are drawn.
        seed: of the samples.
    """

    def __init__(self, model: Any, tokenizer: Any, sampling: Sampling, seed: int = 0) -> None:
        self.model, self.tokenizer, self.sampling, self.seed = model, tokenizer, sampling, seed
        self.bare = model.get_base_model() if isinstance(model, PeftModel) else model
        self.shares_prompts = undecodable(self.bare) is None

    @torch.no_grad()
    def complete(self, asked: Sequence[Question]) -> list[Answer]:
        """Answer a batch.

        Args:
            asked: questions, all greedy or all samples.

        Returns:
            An answer for each.
        """
        tokenizer, greedy = self.tokenizer, asked[0].sample is GREEDY
        texts = {
            question.key: prompt_text(question.prompt, tokenizer) for question in {q.key: q for q in asked}.values()
        }
        prompts = [texts[question.key] for question in asked]
        encoded = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False).to(self.model.device)

        def uniforms(rows: Tensor, step: int) -> Tensor:
            values = [asked[row].uniform(self.seed, step) for row in rows.tolist()]
            return torch.tensor(values, dtype=torch.float64, device=rows.device)

        shared = LocalGroups(uniforms=None if greedy else uniforms)
        options: dict[str, Any] = {"generation_config": self._config(not greedy)}
        if not greedy and not self.shares_prompts:
            # transformers' own loop cannot be given numbers, so the draw becomes the last processor before its argmax
            options = {"generation_config": self._config(False), "logits_processor": self._processors(uniforms)}
        training = self.model.training
        self.model.eval()
        try:
            with shared.within(self.bare) if self.shares_prompts else nullcontext():
                rows = self.model.generate(**encoded, **options)[:, encoded["input_ids"].size(1) :].tolist()
        finally:
            self.model.train(training)
        return [self._answer(row) for row in rows]

    @property
    def ends(self) -> set[int]:
        """Tokens that end a completion."""
        known = self.bare.generation_config.eos_token_id
        return {self.tokenizer.eos_token_id, *(known if isinstance(known, list) else [known])} - {None}

    def _config(self, sample: bool) -> GenerationConfig:
        # What is left out would be taken from the model's own generation config
        sampling = self.sampling
        config = GenerationConfig(
            do_sample=sample,
            max_new_tokens=sampling.max_tokens,
            repetition_penalty=sampling.repetition_penalty,
            pad_token_id=self.tokenizer.pad_token_id,
            eos_token_id=sorted(self.ends) or None,
        )
        if sample:
            config.update(
                temperature=sampling.temperature, top_p=sampling.top_p, top_k=sampling.top_k, min_p=sampling.min_p
            )
        return config

    def _processors(self, uniforms: Any) -> LogitsProcessorList:
        sampling = self.sampling
        found = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature)])
        found += [TopKLogitsWarper(sampling.top_k)] if sampling.top_k else []
        found += [TopPLogitsWarper(sampling.top_p)] if sampling.top_p < 1 else []
        found += [MinPLogitsWarper(sampling.min_p)] if sampling.min_p else []
        return LogitsProcessorList([*found, _Drawn(uniforms)])

    def _answer(self, row: list[int]) -> Answer:
        ends = self.ends
        length = next((place + 1 for place, token in enumerate(row) if token in ends), len(row))
        text = self.tokenizer.decode(row[:length], skip_special_tokens=True)
        return Answer(text, length, bool(length) and row[length - 1] in ends)


class _Drawn(LogitsProcessor):
    """Leaves of each row the token that its own number draws."""

    def __init__(self, uniforms: Any) -> None:
        self.uniforms, self.step = uniforms, 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(R, V) scores of which one is finite."""
        places = torch.arange(len(scores), device=scores.device)
        tokens = tokens_at(scores.softmax(-1), self.uniforms(places, self.step))
        self.step += 1
        return torch.full_like(scores, -torch.inf).scatter(1, tokens[:, None], 0.0)
