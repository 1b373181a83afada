"""The supervised stage: a policy learns chosen answers, with transformers' `Trainer`.

TRL's `SFTTrainer` is not used because that of TRL 1.15 scores tokens with a kernel that needs a GPU.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.state import AcceleratorState, is_initialized
from datasets import Dataset
from torch import Tensor
from transformers import TrainingArguments

from grpo_ext.callbacks import without_stock_output
from grpo_ext.checkpoints import LAST
from grpo_ext.recipes.warm_up import worked_batch
from grpo_ext.rewards.rows import completion_text
from grpo_ext.trainer.saving import WholeCheckpoints


@dataclass(frozen=True)
class Supervised:
    """How a policy is tuned on answers.

    Attributes:
        learning_rate: of AdamW; it falls in a line to 0.
        epochs: passes over the answers.
        batch_size: answers an optimiser step.
        micro_batch_size: answers of a forward pass; None: all of a step.
        max_length: tokens of a prompt with its answer; longer rows are left out.
        save_steps: steps from one checkpoint to the next; 0: none.
        precision: see `device_options`.
        seed: of the order.
    """

    learning_rate: float = 2e-4
    epochs: float = 1.0
    batch_size: int = 16
    micro_batch_size: int | None = None
    max_length: int = 1024
    save_steps: int = 0
    precision: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        divides("micro_batch_size", self.micro_batch_size, "batch_size", self.batch_size)


def divides(part_name: str, part: int | None, whole_name: str, whole: int) -> None:
    """Refuse a part of a batch that does not divide it."""
    if part is not None and (part < 1 or whole % part):
        raise ValueError(f"`{part_name}` {part} must divide `{whole_name}` {whole}.")


def device_options(precision: str | None = None) -> dict[str, bool]:
    """Device and mixed precision for a further trainer in this process, all of whose trainers must agree on them.

    Args:
        precision: "no", "bf16" or "fp16"; None: what a trainer before has, or else bf16 unless on a CPU.

    Returns:
        `use_cpu`, `bf16` and `fp16`, fields of `TrainingArguments`.
    """
    use_cpu = PartialState().device.type == "cpu"
    if precision is None:
        precision = AcceleratorState().mixed_precision if is_initialized() else "no" if use_cpu else "bf16"
    return {"use_cpu": use_cpu, "bf16": precision == "bf16", "fp16": precision == "fp16"}


def stage_options(folder: Path, options: Any) -> dict[str, Any]:
    """Fields of `TrainingArguments` that the stages before RL share.

    Args:
        folder: of the checkpoints.
        options: `learning_rate`, `epochs`, `batch_size`, `micro_batch_size`, `precision`, `save_steps` and `seed`.
    """
    micro = options.micro_batch_size or options.batch_size
    return {
        "output_dir": str(folder),
        "learning_rate": options.learning_rate,
        "num_train_epochs": options.epochs,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": options.batch_size // micro,
        **device_options(options.precision),
        "save_strategy": "steps" if options.save_steps else "no",
        "save_steps": options.save_steps or 1,
        # One to go on from where the newest is torn
        "save_total_limit": 2,
        "seed": options.seed,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
    }


def chosen_answers(pairs: Dataset) -> Dataset:
    """What a policy is to learn from preference pairs.

    Args:
        pairs: with `prompt` and `chosen`.

    Returns:
        `prompt` and `solution`, the text of the chosen answer; messages before its last one belong to the prompt.
    """
    rows = [
        {
            "prompt": row["prompt"] if isinstance(row["prompt"], str) else row["prompt"] + row["chosen"][:-1],
            "solution": completion_text(row["chosen"]),
        }
        for row in pairs
    ]
    return Dataset.from_list(rows)


def begun(folder: Path) -> str | None:
    """What a stage resumes from: its newest whole checkpoint, or nothing where it has not begun.

    Args:
        folder: of the checkpoints; a trainer makes it when it is made.
    """
    return LAST if folder.is_dir() else None


class Stage(WholeCheckpoints):
    """A trainer of a stage before RL, whose recipe says how it goes on."""

    hints_at_resume = False


def tune(policy: Any, tokenizer: Any, rows: Dataset, folder: Path, options: Supervised) -> dict[str, Any]:
    """Minimise −log π(solution | prompt), mean over the tokens of a batch, from the folder's newest checkpoint on.

    Args:
        policy: its trainable weights change in place.
        tokenizer: its tokenizer.
        rows: `prompt` and `solution`.
        folder: of the checkpoints.
        options: how.

    Returns:
        `steps`, `losses` and `left_out`.

    Raises:
        ValueError: every row is too long.
        Interrupted: Ctrl-C or SIGTERM; the same call goes on.
    """
    kept = rows.select([place for place, row in enumerate(rows) if _length(tokenizer, row) <= options.max_length])
    if not len(kept):
        raise ValueError(f"none of {len(rows)} chosen answers fits into {options.max_length} tokens.")
    config = TrainingArguments(**stage_options(folder, options), remove_unused_columns=False)

    def collate(batch: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        given = [row["prompt"] for row in batch], [row["solution"] for row in batch]
        return dict(zip(("input_ids", "attention_mask", "labels"), worked_batch(tokenizer, *given), strict=True))

    checkpoint = begun(folder)
    trainer = Stage(model=policy, args=config, train_dataset=kept, data_collator=collate, processing_class=tokenizer)
    without_stock_output(trainer)
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.interrupt.stopped("Supervised tuning", trainer.state.global_step)
    losses = [float(row["loss"]) for row in trainer.state.log_history if "loss" in row]
    return {"steps": trainer.state.global_step, "losses": losses, "left_out": len(rows) - len(kept)}


def _length(tokenizer: Any, row: Mapping[str, Any]) -> int:
    ids, *_ = worked_batch(tokenizer, [row["prompt"]], [row["solution"]])
    return ids.size(1)
