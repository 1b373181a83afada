"""Runs with scripted rewards, and one optimiser step written out from the definition."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from tiny_runs import make, policy, prompts, texts, tiny_tokenizer, weights
from torch import Tensor
from trl import GRPOTrainer

# Gradients as they are, so that a step can be written out; a rate at which the policy moves
PLAIN = {
    "max_grad_norm": 1e9,
    "lr_scheduler_type": "constant",
    "learning_rate": 0.3,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 2,
    "loss_type": "dapo",
    "use_bias_correction_kl": False,
    "logging_steps": 1,
}


def worth(text: str) -> float:
    """A reward that differs between most completions."""
    return sum(map(ord, text)) % 7 / 8


def scripted(script: Sequence[Sequence[bool]], size: int = 4) -> Callable[..., list[float]]:
    """Rewards of the k-th call: a group is live where the script says so; after the script all are.

    The function's `prompts` and `rewards` hold what each call was given and answered.
    """

    def scripted_reward(prompts: list[Any], completions: list[Any], **kwargs: Any) -> list[float]:
        call = len(scripted_reward.prompts)
        row_texts, live = texts(completions), script[call] if call < len(script) else [True] * len(prompts)
        # Rows of a live group have rewards of their own, even where two completions are the same
        answer = [worth(text) + (i % size) / 100 if live[i // size] else 1.0 for i, text in enumerate(row_texts)]
        scripted_reward.prompts.append(list(prompts))
        scripted_reward.rewards.append(answer)
        return answer

    scripted_reward.prompts, scripted_reward.rewards = [], []
    return scripted_reward


class Recorded:
    """A trainer's run: for each generation the rows that came out, and the weights that made them."""

    def __init__(self, trainer: GRPOTrainer) -> None:
        self.trainer = trainer
        self.batches: list[dict[str, Any]] = []
        self.weights: list[dict[str, Tensor]] = []
        original = trainer._generate_and_score_completions

        def generate(inputs: list[dict[str, Any]]) -> dict[str, Any]:
            output = original(inputs)
            if trainer.model.training:
                self.weights.append(weights(trainer.model))
                self.batches.append({name: deepcopy(value) for name, value in output.items()})
            return output

        trainer._generate_and_score_completions = generate
        trainer.train()
        self.weights.append(weights(trainer.model))
        self.logs = [row for row in trainer.state.log_history if "loss" in row]

    def asked(self, generation: int) -> list[str]:
        """The prompt of each row of a batch."""
        batch = self.batches[generation]
        ids = zip(batch["prompt_ids"], batch["prompt_mask"], strict=True)
        return [tiny_tokenizer().decode(row[mask.bool()]) for row, mask in ids]

    def answers(self, generation: int) -> list[str]:
        """The completion of each row of a batch."""
        batch = self.batches[generation]
        ids = zip(batch["completion_ids"], batch["completion_mask"], strict=True)
        return [tiny_tokenizer().decode(row[mask.bool()], skip_special_tokens=True) for row, mask in ids]


def run(folder: Path, out: Path, reward: Callable[..., Any] | list[Callable[..., Any]], **fields: Any) -> Recorded:
    dataset = fields.pop("dataset", None)
    return Recorded(make(folder, out, reward_funcs=reward, dataset=dataset or prompts(), **{**PLAIN, **fields}))


def policy_of(folder: Path, values: dict[str, Tensor]) -> torch.nn.Module:
    """A stock model with the weights of a full run."""
    model = policy(folder)
    model.load_state_dict(values, strict=False)
    return model


def plain_logps(model: torch.nn.Module, batch: dict[str, Any]) -> list[Tensor]:
    """Log-probabilities of each completion, one row at a time, without padding."""
    found = []
    for row in range(len(batch["prompt_ids"])):
        prompt = batch["prompt_ids"][row][batch["prompt_mask"][row].bool()]
        completion = batch["completion_ids"][row][batch["completion_mask"][row].bool()]
        logits = model(input_ids=torch.cat([prompt, completion])[None]).logits[0].log_softmax(-1)
        found.append(logits[len(prompt) - 1 : -1].gather(1, completion[:, None])[:, 0])
    return found


def plain_step(
    model: torch.nn.Module,
    batch: dict[str, Any],
    advantages: Sequence[float],
    old: Sequence[Tensor],
    reference: torch.nn.Module,
    beta: float,
    rate: float,
    sizes: Sequence[int] | None = None,
) -> dict[str, Tensor]:
    """The weights after a step of descent on DAPO's eq. 8 with k3, or with `sizes` on the sum over each group."""
    with torch.no_grad():
        ref = plain_logps(reference, batch)
    rows = []
    for advantage, now, before, anchor in zip(advantages, plain_logps(model, batch), old, ref, strict=True):
        ratio = torch.exp(now - before)
        gain = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
        x = anchor - now
        rows.append(beta * (x.exp() - x - 1) - gain)
    if sizes is None:
        loss = torch.cat(rows).sum() / sum(len(row) for row in rows)
    else:
        loss = torch.stack([row.mean() for row in rows]).sum() / len(sizes)
    loss.backward()
    return {name: (weight - rate * weight.grad).detach() for name, weight in model.named_parameters()}


def normalised(rewards: Sequence[float], sizes: Sequence[int]) -> list[float]:
    """Each reward against its group, as float64, from the definition."""
    found: list[float] = []
    for size in sizes:
        group = torch.tensor(rewards[len(found) : len(found) + size], dtype=torch.float64)
        spread = group.max() > group.min()
        found += ((group - group.mean()) / (group.std() + 1e-4)).tolist() if spread else [0.0] * size
    return found
