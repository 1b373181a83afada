"""The GRPO run that the recipes gsm8k, math, cmath and deepseekmath share: load, warm up, measure, train, save.

Left out: sharding of the evaluation over processes, and vLLM for it; both passes generate with transformers, and
`python -m grpo_ext.recipes.evaluate` measures what was saved with either.
"""

import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset
from transformers import set_seed

from grpo_ext.callbacks import (
    STOPPED,
    CompletionsCallback,
    HealthCallback,
    MetricsCallback,
    ProgressBar,
    SampleCallback,
    TokenBudget,
    forget_logs,
    stopped_by,
    without_stock_output,
)
from grpo_ext.checkpoints import choose
from grpo_ext.checks import check_output_dir
from grpo_ext.cli import parse
from grpo_ext.config import GRPOExtConfig
from grpo_ext.evaluation.greedy import evaluate
from grpo_ext.flags import names_a_run
from grpo_ext.hub import push_run, take_over, without_token
from grpo_ext.models import load_policy, resolve_model, save_policy
from grpo_ext.models.saving import check_formats
from grpo_ext.models.tokenizer import settle_template
from grpo_ext.recipes.arguments import DEFAULTS, PolicyArguments, RecipeArguments
from grpo_ext.recipes.iterative import ReplayedReward
from grpo_ext.recipes.named_files import named_files
from grpo_ext.recipes.problems import load_problems, problems_named
from grpo_ext.recipes.warm_up import warm_up
from grpo_ext.report import changed_fields, hardware, learning_curve, versions, write_json
from grpo_ext.rewards import REWARDS
from grpo_ext.trainer import GRPOExtTrainer


def open_policy(args: PolicyArguments, config: GRPOExtConfig, model: str | None = None) -> tuple[Any, Any]:
    """The policy and its tokenizer as they are on disk; `model` comes before the arguments' own name."""
    set_seed(config.seed)
    # Unsloth's models decide this when they are loaded, the others in the trainer
    checkpointing = ("unsloth" if config.gradient_checkpointing else False) if args.backend == "unsloth" else None
    policy, tokenizer = load_policy(
        resolve_model(model or args.model_name_or_path),
        backend=args.backend,
        dtype=args.dtype,
        load_in_4bit=args.load_in_4bit,
        lora_r=args.lora_r,
        lora_alpha=args.lora_alpha,
        max_seq_length=args.max_seq_length,
        use_gradient_checkpointing=checkpointing,
        fast_inference=args.fast_inference,
        gpu_memory_utilization=config.vllm_gpu_memory_utilization if args.fast_inference else None,
        trust_remote_code=config.trust_remote_code,
    )
    check_formats(policy, args.save_format or ())
    settle_template(tokenizer, config.chat_template_kwargs)
    return policy, tokenizer


def make_policy(args: RecipeArguments, config: GRPOExtConfig) -> tuple[Any, Any]:
    """The policy and its tokenizer, warmed up on worked answers where that is asked for."""
    policy, tokenizer = open_policy(args, config)
    if args.sft_steps:
        print(f"Supervised warm-up: {args.sft_steps} steps of {args.sft_batch_size} worked answers", flush=True)
        rows = args.sft_steps * args.sft_batch_size
        worked = load_problems(args, "train", rows, seed=1000 + config.seed, dataset=args.sft_dataset)
        if not all(worked["solution"]):
            raise ValueError(
                f"`sft_steps` learns worked answers, and `dataset` {args.sft_dataset or args.dataset!r} has rows with "
                "neither `solution` nor answer; leave sft_steps out, or name another `sft_dataset`."
            )
        warm_up(policy, tokenizer, worked, args.sft_steps, args.sft_batch_size, args.sft_learning_rate)
    return policy, tokenizer


def make_trainer(
    policy: Any,
    tokenizer: Any,
    problems: Dataset,
    args: PolicyArguments,
    config: GRPOExtConfig,
    rewards: Sequence[Callable[..., Any]],
) -> GRPOExtTrainer:
    """The trainer with its rewards, its log on disk, its progress bar, its health and its samples.

    Args:
        policy: model to train.
        tokenizer: its tokenizer.
        problems: training rows.
        args: the recipe's arguments.
        config: the trainer's config.
        rewards: reward functions.

    Returns:
        A trainer ready to train.
    """
    folder = Path(config.output_dir)
    trainer = GRPOExtTrainer(
        model=policy,
        reward_funcs=list(rewards),
        args=config,
        train_dataset=problems,
        processing_class=tokenizer,
        callbacks=[
            ProgressBar(),
            HealthCallback(folder / "health.jsonl", args.detectors(), args.stop_on),
        ],
    )
    without_stock_output(trainer)

    def generated() -> int:
        return trainer.generated_tokens

    trainer.add_callback(MetricsCallback(folder / "metrics.jsonl", generated))
    if args.max_generated_tokens is not None:
        trainer.add_callback(TokenBudget(args.max_generated_tokens, generated))
    trainer.add_callback(SampleCallback(args.sample_every, trainer.newest_groups))
    if args.completions_mb > 0:
        limit = int(args.completions_mb * 1e6)
        trainer.add_callback(CompletionsCallback(folder / "completions.jsonl", trainer.newest_groups, limit))
    return trainer


def measured(
    policy: Any, tokenizer: Any, args: RecipeArguments, config: GRPOExtConfig, tests: dict[str, Dataset]
) -> dict[str, dict[str, float]]:
    """Greedy accuracy on each held-out set, see `evaluate`."""
    return {
        name: evaluate(policy, tokenizer, rows, config.max_completion_length, args.eval_batch_size, row.measures)
        for name, rows in tests.items()
        for row in [problems_named("eval_datasets", name)]
    }


def shown(scores: dict[str, dict[str, float]]) -> str:
    """Accuracies in a line, by name where there are several."""
    if len(scores) == 1:
        return next(f"{score['accuracy']:.1%}" for score in scores.values())
    return ", ".join(f"{name} {score['accuracy']:.1%}" for name, score in scores.items())


def learned_reward(args: RecipeArguments, train: Dataset, tokenizer: Any) -> ReplayedReward | None:
    """The reward model of the run, or None."""
    if args.reward_model is None:
        return None
    return ReplayedReward(args, train, tokenizer, check=REWARDS[problems_named("dataset", args.dataset).reward])


def conditions(argv: Sequence[str], recipe: str, args: RecipeArguments, config: GRPOExtConfig) -> dict[str, Any]:
    """What a run was asked for and what it ran on, for its summary."""
    return {
        "model": args.model_name_or_path,
        "dataset": args.dataset,
        "command": shlex.join(["python", "-m", f"grpo_ext.recipes.{recipe}", *without_token(argv)]),
        "recipe": asdict(args),
        "config": changed_fields(config),
        "versions": versions(),
        "hardware": hardware(),
        "python": sys.version.split()[0],
    }


class Parts(NamedTuple):
    """What a run is made of."""

    policy: Any
    tokenizer: Any
    trainer: GRPOExtTrainer
    tests: dict[str, Dataset]
    learned: ReplayedReward | None


def parts_of(args: RecipeArguments, config: GRPOExtConfig) -> Parts:
    """Problems, policy, rewards and trainer, ready to train."""
    tests = {name: load_problems(args, "test", args.eval_size, 1, name) for name in args.eval_datasets or ()}
    train = load_problems(args, "train", args.train_size, seed=config.seed)
    policy, tokenizer = make_policy(args, config)
    rewards: list[Callable[..., Any]] = [REWARDS[name] for name in args.reward_funcs or ()]
    learned = learned_reward(args, train, tokenizer)
    trainer = make_trainer(policy, tokenizer, train, args, config, [*rewards, *([learned] if learned else [])])
    trainer.round_update = learned
    check_formats(policy, args.save_format or (), trainer.shards_weights)
    return Parts(policy, tokenizer, trainer, tests, learned)


def results(parts: Parts, args: RecipeArguments, before: dict[str, dict[str, float]]) -> dict[str, Any]:
    """What training came to, for its summary. A policy whose training was not stopped is saved, then measured."""
    policy, tokenizer, trainer, tests, learned = parts
    finding, first = stopped_by(trainer), next(iter(tests))
    found: dict[str, Any] = {
        "before": before[first],
        "after": None,
        "evaluations": {name: {"before": score, "after": None} for name, score in before.items()},
        "steps": trainer.state.global_step,
        "interrupted": trainer.interrupt.interrupted,
        "stopped_by": None if finding is None else finding.detector,
        "reward_model": None if learned is None else learned.history,
    }
    if trainer.interrupt.interrupted or finding is not None:
        return found
    weights = trainer.gathered_weights()
    if trainer.is_world_process_zero():
        save_policy(policy, tokenizer, trainer.args.output_dir, args.save_format or (), weights)
    after = measured(policy, tokenizer, args, trainer.args, tests)
    found["after"] = after[first]
    for name, score in after.items():
        found["evaluations"][name]["after"] = score
    print(f"After: {shown(after)}, before: {shown(before)}", flush=True)
    return found


def write_down(folder: Path, summary: dict[str, Any]) -> None:
    """Leave the learning curve and the summary in the run's folder, and say where."""
    title = f"{summary['model']}, {summary['dataset']}"
    learning_curve(folder / "metrics.jsonl", folder / "learning_curve.png", title)
    write_json(folder / "summary.json", summary)
    print(f"{summary['seconds']:.0f} s; summary.json, metrics.jsonl and learning_curve.png in {folder}", flush=True)
    print(f"As a page with curves and completions: grpo-ext report {folder}", flush=True)


def main(
    argv: Sequence[str], recipe: str, defaults: Mapping[str, Any], quickstart: Mapping[str, Any] | None = None
) -> int:
    """Load, warm up, measure, train, measure, save, upload.

    Args:
        argv: the words after the command.
        recipe: name of the face, as in `python -m grpo_ext.recipes.NAME`.
        defaults: the face's values, below the preset, the YAML file and the flags.
        quickstart: further ones where neither a file nor a model is named.

    Returns:
        Exit code: 0, 130 after Ctrl-C, 75 after SIGTERM, or 3 when a finding named in `stop_on` ended it; all three
        can be resumed.
    """
    started = time.time()
    layers = {**DEFAULTS, **defaults, **({} if names_a_run(argv) else quickstart or {})}
    args, config = parse(RecipeArguments, argv, layers)
    folder = Path(config.output_dir)
    check_output_dir(folder)
    target = take_over(config)
    checkpoint = choose(config.resume_from_checkpoint, folder)
    if checkpoint is None:
        forget_logs(folder)

    print(f"Model {args.model_name_or_path}, problems {args.dataset}, results in {folder}", flush=True)
    # As they are read; they may be edited while the run goes on
    files = named_files(argv)
    parts = parts_of(args, config)
    trainer, loaded = parts.trainer, time.time()
    before = measured(parts.policy, parts.tokenizer, args, config, parts.tests)
    print(f"Before: {shown(before)} of {args.eval_size} held-out problems", flush=True)
    trainer.train(resume_from_checkpoint=checkpoint)
    summary = {
        **results(parts, args, before),
        **conditions(argv, recipe, args, config),
        "files": files,
        "seconds_to_load": round(loaded - started, 1),
        "seconds": round(time.time() - started, 1),
    }
    if trainer.is_world_process_zero():
        write_down(folder, summary)
        if target is not None and summary["after"] is not None:
            print(f"Uploaded: {push_run(folder, target, reuse=False)}", flush=True)
    return trainer.interrupt.exit_code or (0 if summary["stopped_by"] is None else STOPPED)
