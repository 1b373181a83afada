"""The three stages of RLHF, each from what the one before left in its folder."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from grpo_ext.callbacks import STOPPED, Interrupted, forget_logs, stopped_by
from grpo_ext.checkpoints import LAST, choose
from grpo_ext.config import GRPOExtConfig
from grpo_ext.data.preferences import BUILT_IN, RULE, Preferences, polite_and_brief
from grpo_ext.files import digest
from grpo_ext.models.saving import save_policy
from grpo_ext.recipes.grpo import make_trainer, open_policy
from grpo_ext.recipes.reward_accuracy import told
from grpo_ext.recipes.reward_training import RewardTraining, train_reward_model
from grpo_ext.recipes.supervised import Supervised, chosen_answers, tune
from grpo_ext.report import learning_curve
from grpo_ext.rewards.reward_model import RECORD, RewardModel, load_reward_model
from grpo_ext.rollouts.solutions import draw_solutions


@dataclass
class Stages:
    """What the stages share.

    Attributes:
        args: options of the recipe.
        config: of the trainer of the last stage.
        folder: each stage has a folder of its name in it.
        preferences: pairs.
        command: what was typed.
    """

    args: Any
    config: GRPOExtConfig
    folder: Path
    preferences: Preferences
    command: str = ""

    @property
    def precision(self) -> str:
        """Of autocast in the last stage, and so in all: a process has one."""
        return "bf16" if self.config.bf16 else "fp16" if self.config.fp16 else "no"

    @property
    def tuned(self) -> str | None:
        """The policy of stage sft, once there is one."""
        folder = self.folder / "sft" / "model"
        return str(folder) if folder.is_dir() else None

    @property
    def reward_model(self) -> str:
        """The reward model to train on.

        Raises:
            ValueError: there is none.
        """
        if self.args.reward_model is not None:
            return self.args.reward_model
        folder = self.folder / "reward" / "model"
        if not (folder / RECORD).is_file():
            raise ValueError(
                f"stage grpo needs a reward model, and {folder} holds none; add stage reward, or name one."
            )
        return str(folder)

    @cached_property
    def pairs(self) -> list[str]:
        """Digests of the pairs to train on and of those to measure on."""
        return [digest(rows) for rows in self.preferences]

    def before(self, stage: str) -> list[str]:
        """The stages whose results a stage begins with, where nothing else is named in their place."""
        found = {
            "sft": [],
            "reward": [] if self.args.reward_base_model else ["sft"],
            "grpo": ["sft"] if self.args.reward_model else ["sft", "reward"],
        }
        return found[stage]


def sft(run: Stages, folder: Path) -> dict[str, Any]:
    """Tune the policy on the chosen answers and save it as one model."""
    args = run.args
    policy, tokenizer = open_policy(args, run.config)
    options = Supervised(
        learning_rate=args.sft_learning_rate,
        epochs=args.sft_epochs,
        batch_size=args.sft_batch_size,
        micro_batch_size=args.sft_micro_batch_size,
        save_steps=args.sft_save_steps,
        precision=run.precision,
        seed=run.config.seed,
    )
    rows = chosen_answers(run.preferences.train)
    summary = tune(policy, tokenizer, rows, folder / "checkpoints", options)
    save_policy(policy, tokenizer, folder, ["model"])
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    losses = summary["losses"]
    print(f"  loss {losses[0]:.3f} -> {losses[-1]:.3f} nats per token in {summary['steps']} steps", flush=True)
    return summary


def reward(run: Stages, folder: Path) -> dict[str, Any]:
    """Train a reward model on the pairs and measure it on held-out ones."""
    args = run.args
    options = RewardTraining(
        learning_rate=args.reward_learning_rate,
        epochs=args.reward_epochs,
        batch_size=args.reward_batch_size,
        micro_batch_size=args.reward_micro_batch_size,
        lora_r=args.reward_lora_r,
        max_length=args.reward_max_length,
        save_steps=args.reward_save_steps,
        precision=run.precision,
        seed=run.config.seed,
    )
    base = args.reward_base_model or run.tuned or args.model_name_or_path
    pairs, held_out = run.preferences
    summary = train_reward_model(base, pairs, folder / "model", held_out=held_out, options=options).summary
    print(f"  {told(summary)}", flush=True)
    return summary


def grpo(run: Stages, folder: Path) -> dict[str, Any]:
    """Train the policy on the learned reward, from its newest checkpoint on, and measure it before and after."""
    args, config = run.args, run.config
    score = load_reward_model(
        run.reward_model,
        device=args.reward_device or ("cuda" if torch.cuda.is_available() else "cpu"),
        dtype=args.reward_dtype,
        load_in_8bit=args.reward_load_in_8bit,
        load_in_4bit=args.reward_load_in_4bit,
        batch_size=args.reward_score_batch_size,
        label=args.reward_label,
    )
    if run.tuned is None:
        print(f"  no policy of stage sft in {run.folder}; beginning with {args.model_name_or_path}", flush=True)
    policy, tokenizer = open_policy(args, config, run.tuned)
    config.output_dir = str(folder)
    checkpoint = choose(config.resume_from_checkpoint or LAST, folder)
    if checkpoint is None:
        forget_logs(folder)
    rows = prompts_of(run.preferences.train)
    trainer = make_trainer(policy, tokenizer, rows, args, config, [score])
    test = prompts_of(run.preferences.test)
    summary: dict[str, Any] = {"reward_model": run.reward_model, "prompts": len(rows)}
    # A checkpoint is loaded by `train`, so this is the policy as the stage found it also when it is resumed
    before = measured(policy, tokenizer, test, score, run)
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.interrupt.stopped("Stage grpo", trainer.state.global_step)
    if (finding := stopped_by(trainer)) is not None:
        raise Interrupted(f"Stage grpo was stopped at step {finding.step} by {finding.detector}.", STOPPED)
    save_policy(policy, tokenizer, folder, args.save_format or ())
    after = measured(policy, tokenizer, test, score, run)
    summary |= {"held_out": {"before": before, "after": after}, "steps": trainer.state.global_step}
    learning_curve(folder / "metrics.jsonl", folder / "learning_curve.png", f"RLHF, {args.model_name_or_path}")
    for name, value in after.items():
        print(f"  {name}: {before[name]:.3g} -> {value:.3g}", flush=True)
    return summary


def prompts_of(pairs: Dataset) -> Dataset:
    """The different prompts of pairs, with the columns that are neither answer."""
    known = {str(prompt): place for place, prompt in reversed(list(enumerate(pairs["prompt"])))}
    kept = [name for name in pairs.column_names if name not in ("chosen", "rejected", "kind")]
    return pairs.select(sorted(known.values())).select_columns(kept)


def measured(policy: Any, tokenizer: Any, rows: Dataset, score: RewardModel, run: Stages) -> dict[str, float]:
    """One sampled answer to each held-out prompt, by the learned reward and, for the built-in pairs, by their rule.

    Args:
        policy: the policy.
        tokenizer: its tokenizer.
        rows: `prompt`, and `answer` for the rule.
        score: the learned reward.
        run: for the length and the temperature of training.

    Returns:
        Mean `reward`, `mean_length` in tokens, and with the built-in pairs the share
        that follows the `rule`, and each of its parts.
    """
    prompts, config = rows["prompt"][:], run.config
    with torch.random.fork_rng(devices=[policy.device] if policy.device.type == "cuda" else []):
        torch.manual_seed(config.seed)
        drawn = draw_solutions(policy, tokenizer, prompts, 1, config.max_completion_length, config.temperature)
    scores = [value for value in score(prompts=prompts, completions=drawn.texts) if value is not None]
    found = {
        "reward": sum(scores) / max(len(scores), 1),
        "mean_length": sum(map(len, drawn.ids)) / len(drawn.ids),
    }
    if run.args.preferences == BUILT_IN:
        follows = polite_and_brief(completions=drawn.texts, answer=rows["answer"])
        found["rule"] = sum(follows) / len(follows)
        for name, part in RULE.items():
            found[name] = sum(map(part, drawn.texts, rows["answer"])) / len(follows)
    return found


# Name to what does it, in the order in which they follow on each other
STAGES: dict[str, Callable[[Stages, Path], dict[str, Any]]] = {"sft": sft, "reward": reward, "grpo": grpo}
