"""GRPO on word problems: `python -m grpo_ext.recipes.gsm8k` is the quickstart, `--config FILE` a run of your own.

Left out: sharding of the evaluation over processes, and vLLM for it; both passes generate with transformers.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback, ProgressCallback, set_seed

from grpo_ext.callbacks import MetricsCallback, ProgressBar, SampleCallback
from grpo_ext.checks import check_output_dir
from grpo_ext.cli import parse, run
from grpo_ext.config import GRPOExtConfig
from grpo_ext.data.arithmetic import DIFFICULTIES, arithmetic
from grpo_ext.data.gsm8k import gsm8k
from grpo_ext.models import load_policy, resolve_model
from grpo_ext.presets import PRESETS
from grpo_ext.recipes.evaluation import evaluate
from grpo_ext.recipes.warm_up import warm_up
from grpo_ext.report import learning_curve, versions, write_json
from grpo_ext.rewards import ANSWER_FORMATS, REWARDS
from grpo_ext.trainer import GRPOExtTrainer

DATASETS = ("gsm8k", "arithmetic")

# Below everything else. Without an accelerator Trainer insists on use_cpu; here it is said for the user.
DEFAULTS: dict[str, Any] = {"report_to": "none", "logging_steps": 1, "use_cpu": not torch.accelerator.is_available()}

# A real pretrained model, problems that need no network, two cores: what runs when nothing is asked for.
QUICKSTART: dict[str, Any] = {
    "model_name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "dataset": "arithmetic",
    "difficulty": "one_step",
    "train_size": 576,
    "eval_size": 128,
    "sft_steps": 3,
    # No reward for the format alone: a bare "#### 6" would earn it
    "reward_funcs": ["correct_final"],
    "lora_r": 32,
    "output_dir": "runs/quickstart",
    "max_steps": 36,
    "per_device_train_batch_size": 32,
    "gradient_accumulation_steps": 4,
    "num_generations": 8,
    "max_completion_length": 32,
    "learning_rate": 3e-4,
    # At a constant rate one run in four lost in its last third what it had won
    "lr_scheduler_type": "cosine",
    "beta": 0.0,
    "gradient_checkpointing": False,
    "save_strategy": "no",
    "sample_every": 5,
}


@dataclass
class RecipeArguments:
    """What the recipe needs beyond the trainer's config."""

    preset: str | None = field(
        default=None,
        metadata={"help": "Named objective, overridden by the YAML file and by flags.", "choices": list(PRESETS)},
    )
    model_name_or_path: str = field(
        default="HuggingFaceTB/SmolLM2-135M-Instruct", metadata={"help": "Folder or hub name of the policy."}
    )
    dtype: str = field(default="bfloat16", metadata={"help": "Weights of the base: bfloat16, float32 or float16."})
    load_in_4bit: bool = field(default=False, metadata={"help": "NF4 base weights through bitsandbytes."})
    lora_r: int = field(default=16, metadata={"help": "Rank of the adapter; 0 trains all weights."})
    lora_alpha: int | None = field(default=None, metadata={"help": "Scale of the adapter; unset: twice the rank."})
    dataset: str = field(default="gsm8k", metadata={"help": "Problems.", "choices": list(DATASETS)})
    difficulty: str = field(
        default="mixed", metadata={"help": "Of the built-in arithmetic.", "choices": list(DIFFICULTIES)}
    )
    answer_format: str = field(
        default="hash", metadata={"help": "Format the prompt asks for.", "choices": list(ANSWER_FORMATS)}
    )
    system_prompt: str | None = field(default=None, metadata={"help": "System message of the GSM8K prompts."})
    train_size: int | None = field(default=None, metadata={"help": "Training problems; unset: all."})
    eval_size: int = field(default=200, metadata={"help": "Held-out problems, answered greedily before and after."})
    eval_batch_size: int = field(default=64, metadata={"help": "Problems answered at a time."})
    reward_funcs: list[str] = field(
        default_factory=lambda: ["correct_strict"], metadata={"help": f"Any of: {', '.join(REWARDS)}.", "nargs": "+"}
    )
    sft_steps: int = field(default=0, metadata={"help": "Supervised warm-up steps before anything is measured."})
    sft_batch_size: int = field(default=16, metadata={"help": "Worked answers a warm-up step."})
    sft_learning_rate: float = field(default=3e-4, metadata={"help": "Of the warm-up."})
    sample_every: int = field(default=10, metadata={"help": "Show a completion every so many steps; 0: never."})

    def __post_init__(self) -> None:
        rows = {"dataset": DATASETS, "answer_format": ANSWER_FORMATS, "difficulty": DIFFICULTIES}
        values = [(name, getattr(self, name), choices) for name, choices in rows.items()]
        for name, value, choices in [*values, *(("reward_funcs", value, REWARDS) for value in self.reward_funcs)]:
            if value not in choices:
                raise ValueError(f"`{name}` is {value!r}; it must be one of: {', '.join(choices)}.")
        for name in ("eval_size", "eval_batch_size", "sft_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}; it must be at least 1.")


def load_problems(args: RecipeArguments, split: str, size: int | None, seed: int) -> Dataset:
    """Rows of one split of the chosen dataset.

    Args:
        args: the recipe's arguments.
        split: "train" or "test".
        size: rows, or None for all (2,048 of the built-in problems).
        seed: of the order.

    Returns:
        `prompt`, `answer`, `question`, `solution` and `answer_format`.
    """
    if args.dataset == "arithmetic":
        return arithmetic(split, size or 2048, seed=seed, difficulty=args.difficulty, answer_format=args.answer_format)
    return gsm8k(split, answer_format=args.answer_format, system_prompt=args.system_prompt, size=size, seed=seed)


def make_trainer(
    policy: Any, tokenizer: Any, problems: Dataset, args: RecipeArguments, config: GRPOExtConfig
) -> GRPOExtTrainer:
    """The trainer with its rewards, its log on disk, its progress bar and its samples.

    Args:
        policy: model to train.
        tokenizer: its tokenizer.
        problems: training rows.
        args: the recipe's arguments.
        config: the trainer's config.

    Returns:
        A trainer ready to train.
    """
    samples = SampleCallback(args.sample_every)
    rewards = [REWARDS[name] for name in args.reward_funcs]
    trainer = GRPOExtTrainer(
        model=policy,
        reward_funcs=[samples.watch(rewards[0]), *rewards[1:]],
        args=config,
        train_dataset=problems,
        processing_class=tokenizer,
        callbacks=[MetricsCallback(Path(config.output_dir) / "metrics.jsonl"), ProgressBar(), samples],
    )
    for stock in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(stock)
    return trainer


def main(argv: Sequence[str]) -> int:
    """Load, warm up, measure, train, measure, save.

    Args:
        argv: the words after the command.

    Returns:
        Exit code: 0, or 130 when the run was interrupted and can be resumed.
    """
    started = time.time()
    chosen = any(word.startswith(("--config", "--model_name_or_path")) for word in argv)
    args, config = parse(RecipeArguments, argv, DEFAULTS | ({} if chosen else QUICKSTART))
    folder = Path(config.output_dir)
    check_output_dir(folder)
    if config.resume_from_checkpoint is None:
        (folder / "metrics.jsonl").unlink(missing_ok=True)

    print(f"Model {args.model_name_or_path}, problems {args.dataset}, results in {folder}", flush=True)
    test = load_problems(args, "test", args.eval_size, seed=1)
    train = load_problems(args, "train", args.train_size, seed=config.seed)
    set_seed(config.seed)
    policy, tokenizer = load_policy(
        resolve_model(args.model_name_or_path),
        dtype=args.dtype,
        load_in_4bit=args.load_in_4bit,
        lora_r=args.lora_r,
        lora_alpha=args.lora_alpha,
        trust_remote_code=config.trust_remote_code,
    )
    trainer_ready = time.time()
    if args.sft_steps:
        print(f"Supervised warm-up: {args.sft_steps} steps of {args.sft_batch_size} worked answers", flush=True)
        worked = load_problems(args, "train", args.sft_steps * args.sft_batch_size, seed=1000 + config.seed)
        warm_up(policy, tokenizer, worked, args.sft_steps, args.sft_batch_size, args.sft_learning_rate)
    trainer = make_trainer(policy, tokenizer, train, args, config)

    measure = (tokenizer, test, config.max_completion_length, args.eval_batch_size)
    before = evaluate(policy, *measure)
    print(f"Before: {before['accuracy']:.1%} of {before['problems']} held-out problems", flush=True)
    trainer.train(resume_from_checkpoint=config.resume_from_checkpoint)

    summary = {
        "before": before,
        "after": None,
        "steps": trainer.state.global_step,
        "model": args.model_name_or_path,
        "dataset": args.dataset,
        "interrupted": trainer.interrupt.interrupted,
        "command": " ".join(["python -m grpo_ext.recipes.gsm8k", *argv]),
        "recipe": asdict(args),
        "versions": versions(),
        "python": sys.version.split()[0],
        "seconds_to_load": round(trainer_ready - started, 1),
    }
    if not trainer.interrupt.interrupted:
        name = "adapter" if args.lora_r else "model"
        policy.save_pretrained(folder / name, **({"selected_adapters": ["default"]} if args.lora_r else {}))
        tokenizer.save_pretrained(folder / name)
        summary["after"] = evaluate(policy, *measure)
        print(f"After: {summary['after']['accuracy']:.1%}, before: {before['accuracy']:.1%}", flush=True)
    summary["seconds"] = round(time.time() - started, 1)
    learning_curve(
        folder / "metrics.jsonl", folder / "learning_curve.png", f"{args.model_name_or_path}, {args.dataset}"
    )
    write_json(folder / "summary.json", summary)
    print(f"{summary['seconds']:.0f} s; summary.json, metrics.jsonl and learning_curve.png in {folder}", flush=True)
    return 130 if trainer.interrupt.interrupted else 0


if __name__ == "__main__":
    run(main)
