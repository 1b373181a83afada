"""A process reward model: a classifier of tokens or of sequences that reads a solution at the end of each step."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from grpo_ext.rewards.classifiers import chunks_by_length, load_classifier, longest_row, padded
from grpo_ext.rewards.rows import prompt_text
from grpo_ext.rewards.steps import Step

# File beside the weights that says how solutions were written when the model was trained
TAG_FILE = "step_tag.txt"


class Solution(NamedTuple):
    """A prompt and a solution as token ids, and the index of the token at which each step is judged."""

    ids: list[int]
    ends: list[int]


def written(prompt: Any, steps: Sequence[str], tokenizer: Any, tag: str = "\n") -> Solution:
    """A prompt and the steps of its solution, each followed by the tag, in a classifier's own tokens.

    The parts are tokenised apart, so that a step's end is known and the beginning of a solution has the same tokens
    whatever follows.

    Args:
        prompt: text, or a list of messages, for which the tokenizer's chat template is used.
        steps: text of each step.
        tokenizer: the classifier's.
        tag: what follows a step; its last token is the one that is judged.

    Returns:
        Ids and ends.
    """
    ids = list(tokenizer(prompt_text(prompt, tokenizer), add_special_tokens=False)["input_ids"])
    ends = []
    for step in steps:
        ids += tokenizer(step + tag, add_special_tokens=False)["input_ids"]
        ends.append(len(ids) - 1)
    return Solution(ids, ends)


def share_good(logits: Tensor, good_label: int = 1) -> Tensor:
    """Probability that a step is good: σ of a single logit, or the softmax at the good label.

    Args:
        logits: (..., C).
        good_label: index of the good one of several labels.

    Returns:
        (...).
    """
    logits = logits.float()
    return logits.squeeze(-1).sigmoid() if logits.size(-1) == 1 else logits.softmax(-1)[..., good_label]


class ModelReward:
    """Scores steps with a classifier, in chunks; a step beyond the model's length gets None.

    Args:
        model: token or sequence classifier; a sequence classifier reads the solution up to each step on its own.
        tokenizer: the model's own, which need not be the policy's.
        tag: what follows each step.
        batch_size: rows of a forward pass.
        good_label: index of the good one of several labels.
        max_length: tokens of a solution at most; None reads it off the model.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        tag: str = "\n",
        batch_size: int = 16,
        good_label: int = 1,
        max_length: int | None = None,
    ) -> None:
        self.model, self.tokenizer, self.tag = model.eval(), tokenizer, tag
        self.batch_size, self.good_label = batch_size, good_label
        self.max_length = max_length or longest_row(model, tokenizer)
        self.by_token = type(model).__name__.endswith("ForTokenClassification")

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], steps: Sequence[Sequence[Step]], **columns: Any
    ) -> list[list[float | None]]:
        """Reward the steps of B completions.

        Args:
            prompts: B prompts.
            completions: B completions, read through their steps.
            steps: for each completion its steps.
            columns: not read.

        Returns:
            Probabilities that the steps of each completion are good.
        """
        solutions = [
            written(prompt, [step.text for step in row], self.tokenizer, self.tag)
            for prompt, row in zip(prompts, steps, strict=True)
        ]
        return self.scores(solutions)

    @torch.no_grad()
    def scores(self, solutions: Sequence[Solution]) -> list[list[float | None]]:
        """Probabilities that the steps of each solution are good.

        Args:
            solutions: what `written` gives.

        Returns:
            One list a solution.
        """
        result: list[list[float | None]] = [[None] * len(solution.ends) for solution in solutions]
        for batch in self._batches(solutions):
            rows = [solutions[row].ids[:length] for row, length, _ in batch]
            logits = self.model(**self.padded(rows)).logits
            for place, (row, _, judged) in enumerate(batch):
                for step in judged:
                    found = logits[place, solutions[row].ends[step]] if self.by_token else logits[place]
                    result[row][step] = share_good(found, self.good_label).item()
        return result

    def _batches(self, solutions: Sequence[Solution]) -> list[list[tuple[int, int, list[int]]]]:
        """(row, tokens, steps) of each row of each pass, those of about the same length together."""
        reads: list[tuple[int, int, list[int]]] = []
        for row, (_, ends) in enumerate(solutions):
            within = [step for step, end in enumerate(ends) if self.max_length is None or end < self.max_length]
            if self.by_token and within:
                reads.append((row, ends[within[-1]] + 1, within))
            elif not self.by_token:
                reads += [(row, ends[step] + 1, [step]) for step in within]
        return chunks_by_length(reads, self.batch_size, lambda read: read[1])

    def padded(self, rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """Rows as one batch, padded on the right.

        Args:
            rows: token ids.

        Returns:
            `input_ids` and `attention_mask`, (B, L) on the model's device.
        """
        return padded(rows, self.tokenizer.pad_token_id, self.model.device)


def load_process_model(
    name: str, device: torch.device | str = "cpu", dtype: str = "auto", **options: Any
) -> ModelReward:
    """Load a process reward model.

    Args:
        name: folder or hub name of a token or sequence classifier.
        device: where to put it.
        dtype: torch's name of its type, or "auto" for the one it was saved in.
        options: of `ModelReward`.

    Returns:
        The reward.

    Raises:
        OSError: there is no such model.
        ValueError: it is no classifier, or has no safetensors.
    """
    kinds = {
        "ForTokenClassification": AutoModelForTokenClassification,
        "ForSequenceClassification": AutoModelForSequenceClassification,
    }
    model, tokenizer = load_classifier(name, kinds, "process_reward_model", device, dtype)
    tag = Path(name) / TAG_FILE
    if tag.is_file():
        options = {"tag": tag.read_text(encoding="utf-8"), **options}
    return ModelReward(model, tokenizer, **options)
