"""Train a process reward model: `python -m grpo_ext.recipes.process_reward`, then `--process_reward model`.

Solutions come from a policy, or from worked answers of which some results are changed; their steps are labelled by the
rule or by roll-outs; a token classifier learns the labels and is measured on problems that it has not seen. Left out:
sequence classifiers (they can be used, not trained here), adapters, several processes.
"""

import random
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForTokenClassification, set_seed

from grpo_ext.checks import at_least, check_output_dir
from grpo_ext.cli import parse_alone
from grpo_ext.launch import run
from grpo_ext.models import load_tokenizer, resolve_model
from grpo_ext.recipes.problems import load_problems
from grpo_ext.recipes.process_training import Example, accuracy, train
from grpo_ext.recipes.sampled import SampledArguments, open_sampler
from grpo_ext.report import versions, write_json
from grpo_ext.rewards import REWARDS
from grpo_ext.rewards.process import PROCESS_REWARDS, Tools
from grpo_ext.rewards.process_model import TAG_FILE, ModelReward
from grpo_ext.rewards.steps import Step, split_steps
from grpo_ext.rollouts.solutions import draw_solutions
from grpo_ext.trust import opened

SOURCES = ("policy", "changed")
LABELS = tuple(name for name in PROCESS_REWARDS if name != "model")
_RESULT = re.compile(r"(?<==)(\s*)(\d+)\s*$")


@dataclass
class ProcessRewardArguments(SampledArguments):
    """What the recipe takes."""

    output_dir: str = field(default="runs/process_reward", metadata={"help": "Where the model is saved."})
    source: str = field(
        default="policy",
        metadata={
            "help": "Solutions of the policy, or worked answers with changed results.",
            "choices": list(SOURCES),
        },
    )
    labels: str = field(default="calculations", metadata={"help": "What labels a step.", "choices": list(LABELS)})
    rollouts: int = field(default=8, metadata={"help": "Roll-outs of a step, for labels that need them."})

    def __post_init__(self) -> None:
        self.check_sampled("source", "labels")
        at_least("rollouts", self.rollouts)
        if self.source == "changed" and self.labels != "calculations":
            raise ValueError(
                f"`labels` is {self.labels!r}, but changed answers come without a policy; use source='policy'."
            )


def changed_solutions(problems: Dataset, per_problem: int, seed: int) -> list[tuple[int, list[str]]]:
    """Worked answers in which half the results, drawn at random, are another number.

    Args:
        problems: rows with `solution`.
        per_problem: solutions of each.
        seed: of the draws.

    Returns:
        Row and steps of each solution.
    """
    draw = random.Random(seed)

    def change(line: str) -> str:
        found = _RESULT.search(line)
        if found is None or draw.random() < 0.5:
            return line
        value = int(found[2])
        other = draw.choice([value + off for off in range(-9, 10) if off and value + off >= 0])
        return f"{line[: found.start()]}{found[1]}{other}"

    return [
        (row, [change(line) for line in solution.split("\n") if line.strip()])
        for row, solution in enumerate(problems["solution"])
        for _ in range(per_problem)
    ]


def label_changed(problems: Dataset, args: ProcessRewardArguments) -> list[Example]:
    """Changed worked answers, labelled by the rule."""
    found = changed_solutions(problems, args.solutions, args.seed)
    prompts = [problems[row]["prompt"] for row, _ in found]
    steps = [[Step(text, 0, 0, 0) for text in lines] for _, lines in found]
    labels = PROCESS_REWARDS["calculations"](None)(prompts=prompts, completions=prompts, steps=steps)  # type: ignore[arg-type]
    return [Example(prompt, lines, row) for prompt, (_, lines), row in zip(prompts, found, labels, strict=True)]


def label_sampled(policy: Any, tokenizer: Any, problems: Dataset, args: ProcessRewardArguments) -> list[Example]:
    """Solutions of a policy, labelled by the rule or by its own roll-outs."""
    drawn = draw_solutions(
        policy, tokenizer, problems["prompt"], args.solutions, args.max_completion_length, args.temperature
    )
    rows, ids = drawn.rows, drawn.ids
    reward = PROCESS_REWARDS[args.labels](
        Tools(
            drawn.draw,
            REWARDS[args.check],
            tokenizer,
            policy.device,
            args.max_completion_length,
            rollouts=args.rollouts,
        )
    )
    steps = [split_steps(row, tokenizer, "\n", drawn.ends) for row in ids]
    columns = {name: [problems[name][row] for row in rows] for name in ("answer", "answer_format")}
    prompts = [problems["prompt"][row] for row in rows]
    labels = reward(
        prompts=prompts,
        completions=drawn.texts,
        steps=steps,
        prompt_ids=[drawn.asked[row] for row in rows],
        completion_ids=ids,
        **columns,
    )
    return [
        Example(prompt, [step.text for step in of_row], values)
        for prompt, of_row, values in zip(prompts, steps, labels, strict=True)
    ]


def _labeller(args: ProcessRewardArguments) -> Callable[[Dataset], list[Example]]:
    if args.source == "changed":
        return lambda problems: label_changed(problems, args)
    policy, tokenizer = open_sampler(args)
    return lambda problems: label_sampled(policy, tokenizer, problems, args)


def _classifier(args: ProcessRewardArguments) -> tuple[Any, Any]:
    """A model with a new head of two labels for each token, and its tokenizer."""
    base = resolve_model(args.base_model or args.model_name_or_path)
    tokenizer = load_tokenizer(base, trust_remote_code=None)
    options: dict[str, Any] = {"num_labels": 2, "dtype": torch.float32}
    model = opened(AutoModelForTokenClassification, base, "base_model", trust_remote_code=None, **options)
    model.config.pad_token_id = tokenizer.pad_token_id
    return (model.cuda() if torch.cuda.is_available() else model), tokenizer


def told(measured: dict[str, float] | None) -> str:
    """What `accuracy` found, in words, with a warning where the model is no better than a constant."""
    if measured is None:
        return "Held out: not measured, no step of the held-out problems has a label; more `held_out` may have some."
    line = (
        f"Held out: {measured['accuracy']:.1%} of {measured['steps']} steps, always the more frequent label: "
        f"{measured['majority']:.1%}"
    )
    if measured["accuracy"] > measured["majority"]:
        return line
    return f"{line}\nWarning: the model is no better than a constant; do not train a policy on it."


def main(argv: Sequence[str]) -> int:
    """Make solutions, label their steps, train, measure, save.

    Args:
        argv: the words after the command.

    Returns:
        Exit code 0.

    Raises:
        ValueError: no step could be labelled.
    """
    started = time.time()
    args = parse_alone(ProcessRewardArguments, argv)
    folder = Path(args.output_dir)
    check_output_dir(folder)
    set_seed(args.seed)
    label = _labeller(args)
    examples = label(load_problems(args, "train", args.problems, seed=args.seed))
    held_out = label(load_problems(args, "test", args.held_out, seed=1))
    labels = [value for example in examples for value in example.labels if value is not None]
    if not labels:
        raise ValueError(
            f"`labels` {args.labels!r} found nothing to label in {len(examples)} solutions; use source='changed', a "
            "policy that writes calculations (sft_steps), or labels='rollouts_soft'."
        )
    print(
        f"{len(labels)} labelled steps in {len(examples)} solutions, {sum(labels) / len(labels):.1%} good", flush=True
    )
    model, tokenizer = _classifier(args)
    losses = train(model, tokenizer, examples, args.epochs, args.batch_size, args.learning_rate, args.seed)
    measured = accuracy(ModelReward(model, tokenizer), held_out)
    print(told(measured), flush=True)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "model" / TAG_FILE).write_text("\n", encoding="utf-8")
    summary: dict[str, Any] = {
        "held_out": measured,
        "losses": losses,
        "labelled_steps": len(labels),
        "good": sum(labels) / len(labels),
    }
    summary |= {"recipe": asdict(args), "versions": versions(), "seconds": round(time.time() - started, 1)}
    write_json(folder / "summary.json", summary)
    print(f"{summary['seconds']:.0f} s; model and summary.json in {folder}", flush=True)
    return 0


if __name__ == "__main__":
    run(main)
