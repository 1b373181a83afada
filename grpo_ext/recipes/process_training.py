"""Training and measuring a process reward model on solutions whose steps are labelled."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from grpo_ext.rewards.process_model import ModelReward, Solution, written


@dataclass(frozen=True)
class Example:
    """A solution whose steps are labelled.

    Attributes:
        prompt: text or messages.
        steps: text of each labelled or unlabelled step.
        labels: probability that each step is good, or None.
    """

    prompt: Any
    steps: list[str]
    labels: list[float | None]


def train(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int = 0,
) -> list[float]:
    """Minimise −y log p − (1 − y) log(1 − p), mean over the labelled steps of a batch, with AdamW.

    Args:
        model: token classifier with two labels; its weights change in place.
        tokenizer: its tokenizer.
        examples: labelled solutions.
        epochs: passes over the examples.
        batch_size: examples an optimiser step.
        learning_rate: of AdamW at first; it falls in a line to a tenth.
        seed: of the order.

    Returns:
        Loss of each optimiser step, nats a step of a solution.
    """
    reader = ModelReward(model, tokenizer)
    solutions = [written(example.prompt, example.steps, tokenizer) for example in examples]
    known = [row for row, example in enumerate(examples) if any(label is not None for label in example.labels)]
    steps = epochs * -(-len(known) // batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=steps)
    draw, losses = random.Random(seed), []
    model.train()
    for _ in range(epochs):
        draw.shuffle(known)
        for start in range(0, len(known), batch_size):
            rows = known[start : start + batch_size]
            loss = _loss(reader, [solutions[row] for row in rows], [examples[row].labels for row in rows])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            losses.append(loss.item())
    model.eval()
    return losses


def _loss(
    reader: ModelReward, solutions: Sequence[Solution], labels: Sequence[Sequence[float | None]]
) -> torch.Tensor:
    """Mean cross-entropy of the labelled steps of a batch."""
    logits = reader.model(**reader.padded([solution.ids for solution in solutions])).logits.float()
    places = [
        (place, end, label)
        for place, (solution, of_row) in enumerate(zip(solutions, labels, strict=True))
        for end, label in zip(solution.ends, of_row, strict=True)
        if label is not None
    ]
    good = torch.tensor([label for *_, label in places], device=logits.device)
    read = logits[[place for place, *_ in places], [end for _, end, _ in places]]
    return torch.nn.functional.cross_entropy(read, torch.stack([1 - good, good], 1))


def accuracy(reader: ModelReward, examples: Sequence[Example]) -> dict[str, float] | None:
    """Share of steps on whose side of one half model and label agree.

    Args:
        reader: the model.
        examples: labelled solutions.

    Returns:
        `accuracy`, `majority` (what always giving the more frequent label would reach), and the number of `steps`;
        None where no step has a label, or all are too long.
    """
    scores = reader.scores([written(e.prompt, e.steps, reader.tokenizer, reader.tag) for e in examples])
    pairs = [
        (score > 0.5, label > 0.5)
        for example, row in zip(examples, scores, strict=True)
        for label, score in zip(example.labels, row, strict=True)
        if label is not None and score is not None
    ]
    if not pairs:
        return None
    good = sum(label for _, label in pairs) / len(pairs)
    right = sum(score == label for score, label in pairs) / len(pairs)
    return {"accuracy": right, "majority": max(good, 1 - good), "steps": len(pairs)}
