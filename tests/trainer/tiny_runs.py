"""Short runs of a tiny policy, shared by the tests of the trainer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import trl
from datasets import Dataset
from packaging.version import Version
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from trl import GRPOConfig, GRPOTrainer

from grpo_ext import GRPOExtConfig, GRPOExtTrainer
from grpo_ext.models import tiny_policy, tiny_tokenizer
from grpo_ext.models.policy import add_lora

PROMPTS = ["abc", "de fgh", "xyz a b c", "q", "1 + 1", "what?", "N", "longer than the others"]
QUIET = {
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
    "optim": "sgd",
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "num_generations": 4,
    "max_completion_length": 8,
    "max_steps": 2,
}


def texts(completions: list[Any]) -> list[str]:
    return [value if isinstance(value, str) else value[-1]["content"] for value in completions]


def early_letters(completions: list[Any], **kwargs: Any) -> list[float]:
    """A reward with spread in nearly every group: the share of characters below 'N' in the ASCII table."""
    return [sum(c < "N" for c in text) / max(len(text), 1) for text in texts(completions)]


def digits_or_none(completions: list[Any], **kwargs: Any) -> list[float | None]:
    """The number of digits, and None for every other completion."""
    return [None if i % 2 else float(sum(c.isdigit() for c in t)) for i, t in enumerate(texts(completions))]


class PlainStock(GRPOTrainer):
    """The stock trainer with the definition of a log-probability in place of a fused head that needs a GPU."""

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None, None]:
        logits = model(input_ids=input_ids, attention_mask=attention_mask).logits[:, -logits_to_keep - 1 : -1]
        log_probs = (logits.float() / self.temperature).log_softmax(-1)
        mask = attention_mask[:, -logits_to_keep:]
        chosen = log_probs.gather(-1, input_ids[:, -logits_to_keep:].unsqueeze(-1)).squeeze(-1) * mask
        return chosen, -(log_probs.exp() * log_probs).sum(-1) * mask if compute_entropy else None, None


# TRL 1.15 has no path for CPUs
STOCK = GRPOTrainer if Version(trl.__version__) >= Version("1.16") else PlainStock


def save_policy(folder: Path) -> Path:
    """Save the tiny policy, because TRL loads the reference model of a full run by the name of the policy."""
    model, tokenizer = tiny_policy(seed=0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def policy(folder: Path, lora: bool = False) -> PreTrainedModel | PeftModel:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if not lora:
        return model
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = add_lora(model, 4)
        # The second factor starts at zero, which would leave the first without a gradient
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.05)
    return model


def prompts(conversational: bool = False, **columns: list[Any]) -> Dataset:
    rows = [[{"role": "user", "content": text}] for text in PROMPTS] if conversational else PROMPTS
    return Dataset.from_dict({"prompt": rows, **columns})


def make(
    folder: Path,
    out: Path,
    cls: type[GRPOTrainer] = GRPOExtTrainer,
    reward_funcs: Callable[..., Any] | list[Callable[..., Any]] = early_letters,
    dataset: Dataset | None = None,
    lora: bool = False,
    **fields: Any,
) -> GRPOTrainer:
    config = GRPOExtConfig if issubclass(cls, GRPOExtTrainer) else GRPOConfig
    return cls(
        model=policy(folder, lora),
        reward_funcs=reward_funcs,
        args=config(output_dir=str(out), **{**QUIET, **fields}),
        train_dataset=prompts() if dataset is None else dataset,
        processing_class=tiny_tokenizer(),
    )


def weights(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)
