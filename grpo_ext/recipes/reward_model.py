"""Train a reward model: `python -m grpo_ext.recipes.reward_model`, then `--reward_model FOLDER` of the recipe rlhf.

Pairs are built in, come from a file or the hub, or are made from a policy's own right and wrong answers to problems
(`--preferences policy`), as DeepSeekMath's are. Left out: several processes for the policy's solutions.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import set_seed

from grpo_ext.callbacks import Interrupted
from grpo_ext.checks import at_least, check_output_dir
from grpo_ext.cli import parse_alone
from grpo_ext.data.preferences import Preferences
from grpo_ext.launch import run
from grpo_ext.recipes.preference_options import PreferenceArguments
from grpo_ext.recipes.problems import load_problems
from grpo_ext.recipes.reward_accuracy import told
from grpo_ext.recipes.reward_training import RewardTraining, train_reward_model
from grpo_ext.recipes.sampled import SampledArguments, open_sampler
from grpo_ext.report import versions, write_json
from grpo_ext.rewards import REWARDS
from grpo_ext.rollouts.pairs import make_pairs

OWN = "policy"


@dataclass
class RewardModelArguments(SampledArguments, PreferenceArguments):
    """What the recipe takes; the fields of problems and solutions are for `--preferences policy`."""

    output_dir: str = field(default="runs/reward_model", metadata={"help": "The model is saved in model/ there."})
    preferences: str = field(
        default="builtin",
        metadata={
            "help": "builtin, a JSON Lines file with prompt, chosen and rejected, a data set on the hub, or policy: "
            "pairs of the policy's own right and wrong answers."
        },
    )
    solutions: int = field(default=8, metadata={"help": "Solutions of a problem."})
    pairs_per_problem: int = field(default=4, metadata={"help": "Pairs of a problem at most."})
    epochs: int = field(default=1, metadata={"help": "Passes over the pairs."})
    micro_batch_size: int | None = field(default=None, metadata={"help": "Pairs of a forward pass; unset: all."})
    lora_r: int = field(default=0, metadata={"help": "Rank of an adapter, merged when saved; 0 trains all weights."})
    max_length: int = field(default=1024, metadata={"help": "Tokens; pairs with a longer side are left out."})
    dtype: str = field(default="float32", metadata={"help": "Type of the weights, in training and saved."})
    save_steps: int = field(default=100, metadata={"help": "Steps from one checkpoint to the next; 0: none."})

    def __post_init__(self) -> None:
        self.check_sampled()
        self.check_preferences()
        at_least("pairs_per_problem", self.pairs_per_problem)

    def training(self) -> RewardTraining:
        """How the model is trained."""
        shared = RewardTraining.__dataclass_fields__.keys() & asdict(self).keys()
        return RewardTraining(**{name: getattr(self, name) for name in shared})


def own_pairs(args: RewardModelArguments) -> tuple[Preferences, dict[str, Any]]:
    """Pairs of the policy's own answers, to training and to held-out problems, and what became of the problems."""
    policy, tokenizer = open_sampler(args)

    def made(split: str, size: int, seed: int) -> tuple[Dataset, dict[str, int]]:
        problems = load_problems(args, split, size, seed)
        found = make_pairs(
            policy,
            tokenizer,
            problems,
            samples=args.solutions,
            pairs_per_problem=args.pairs_per_problem,
            check=REWARDS[args.check],
            max_completion_length=args.max_completion_length,
            temperature=args.temperature,
            seed=args.seed,
        )
        print(f"  {split}: " + ", ".join(f"{count} {name}" for name, count in found.counts.items()), flush=True)
        return found

    train, test = made("train", args.problems, args.seed), made("test", args.held_out, 1)
    if not len(train[0]):
        raise ValueError(
            f"no problem of {args.problems} has both a right and a wrong answer of the policy; draw more `solutions`, "
            "or take problems that it solves now and then."
        )
    return Preferences(train[0], test[0]), {"train": train[1], "test": test[1]}


def main(argv: Sequence[str]) -> int:
    """Make or load pairs, train, measure, save.

    Args:
        argv: the words after the command.

    Returns:
        Exit code: 0, or after Ctrl-C 130 and after SIGTERM 75; the same command goes on.

    Raises:
        ValueError: a row is malformed, or there are no pairs.
    """
    started = time.time()
    args = parse_alone(RewardModelArguments, argv)
    folder = Path(args.output_dir)
    check_output_dir(folder)
    set_seed(args.seed)
    pairs, counts = own_pairs(args) if args.preferences == OWN else (args.load(args.seed), None)
    print(f"{len(pairs.train)} pairs to train on, {len(pairs.test)} held out", flush=True)
    base = args.base_model or args.model_name_or_path
    try:
        trained = train_reward_model(base, pairs.train, folder / "model", held_out=pairs.test, options=args.training())
    except Interrupted as stopped:
        print(f"{stopped} The same command goes on with it.", flush=True)
        return stopped.code
    print(told(trained.summary), flush=True)
    summary = {**trained.summary, "problems": counts, "recipe": asdict(args), "versions": versions()}
    summary["seconds"] = round(time.time() - started, 1)
    write_json(folder / "summary.json", summary)
    print(f"{summary['seconds']:.0f} s; summary.json and model/ in {folder}", flush=True)
    return 0


if __name__ == "__main__":
    run(main)
