"""A short supervised warm-up on worked answers, so that a weak model earns its first rewards."""

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from grpo_ext.rewards.rows import Completion, prompt_text


def worked_batch(
    tokenizer: Any, prompts: Sequence[Completion], answers: Sequence[str], device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor, Tensor]:
    """Prompts with the answers that are to be learned, padded on the left.

    Args:
        tokenizer: the policy's.
        prompts: B prompts, text or messages.
        answers: B answers, after which the end token is to be learned as well.
        device: where the batch goes.

    Returns:
        (B, L) ids, attention mask, and labels, which are -100 where nothing is to be learned.
    """
    sequences, labels = [], []
    for prompt, answer in zip(prompts, answers, strict=True):
        asked = tokenizer(prompt_text(prompt, tokenizer), add_special_tokens=False)["input_ids"]
        answered = tokenizer(answer + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
        sequences.append(asked + answered)
        labels.append([-100] * len(asked) + answered)
    length = max(map(len, sequences))
    pads = [length - len(sequence) for sequence in sequences]
    ids = [[tokenizer.pad_token_id] * pad + row for pad, row in zip(pads, sequences, strict=True)]
    mask = [[0] * pad + [1] * (length - pad) for pad in pads]
    targets = [[-100] * pad + row for pad, row in zip(pads, labels, strict=True)]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device), torch.tensor(targets, device=device)


def warm_up(model: Any, tokenizer: Any, rows: Dataset, steps: int, batch_size: int, learning_rate: float) -> float:
    """Minimise −log π(solution | prompt), mean over tokens, with AdamW over the trainable weights.

    Args:
        model: policy; its trainable weights change in place.
        tokenizer: its tokenizer.
        rows: at least `steps * batch_size` rows with `prompt` and `solution`.
        steps: optimiser steps.
        batch_size: rows a step.
        learning_rate: of AdamW, constant.

    Returns:
        Loss of the last step, nats per token.

    Raises:
        ValueError: there are fewer rows than the steps need.
    """
    if len(rows) < steps * batch_size:
        raise ValueError(
            f"`sft_steps` {steps} x `sft_batch_size` {batch_size} needs {steps * batch_size} rows; found {len(rows)}."
        )
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=learning_rate, weight_decay=0.0)
    model.train()
    loss = torch.zeros(())
    for step in range(steps):
        part = rows[step * batch_size : (step + 1) * batch_size]
        ids, mask, labels = worked_batch(tokenizer, part["prompt"], part["solution"], model.device)
        kept = int((labels != -100).sum(1).max())
        logits = model(input_ids=ids, attention_mask=mask, logits_to_keep=kept + 1).logits[:, :-1].float()
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, -kept:].flatten(), ignore_index=-100)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        print(f"  warm-up step {step + 1}/{steps}: loss {loss.item():.3f}", flush=True)
    return loss.item()
