"""A reward model that is trained on between rounds, with replay (DeepSeekMath 2402.03300, Algorithm 1, sec. 4.1.4).

Left out: training a process reward model on between rounds.
"""

import json
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoConfig

from grpo_ext.checks import at_least, one_of
from grpo_ext.models import resolve_model
from grpo_ext.recipes.reward_training import TYPES, RewardTraining, train_reward_model
from grpo_ext.rewards.reward_model import RewardModel, load_reward_model
from grpo_ext.rewards.rows import Completion
from grpo_ext.rollouts.pairs import make_pairs
from grpo_ext.trust import inside, opened

# Of the problems drawn for a round, beside those that are trained on, so many in a hundred measure the reward model
HELD_OUT_PERCENT = 25
# Default of `ddp_timeout`, in seconds
USUAL_TIMEOUT = 1800

logger = logging.getLogger("grpo_ext")


@dataclass
class RoundRewardArguments:
    """The reward model of a run, if it has one."""

    reward_model: str | None = field(
        default=None,
        metadata={
            "help": "Folder or hub name of a reward model, in place of reward_funcs unless they are named too. A "
            "causal model becomes one at the start, from the policy's own right and wrong answers."
        },
    )
    reward_dtype: str = field(default="float32", metadata={"help": "Weights of the reward model."})
    reward_problems: int = field(
        default=256,
        metadata={"help": "Training problems whose answers train it at the start of a round; 0: it stays as it is."},
    )
    reward_samples: int = field(default=8, metadata={"help": "Answers of the policy to each of them."})
    reward_pairs: int = field(default=4, metadata={"help": "Pairs of a problem at most."})
    reward_replay: float = field(default=0.1, metadata={"help": "Share of earlier rounds' pairs (sec. 4.1.4: 10 %%)."})
    reward_learning_rate: float = field(default=2e-5, metadata={"help": "Sec. 4.2: 2e-5."})
    reward_epochs: float = field(default=1.0, metadata={"help": "Passes over the pairs of a round."})
    reward_batch_size: int = field(default=16, metadata={"help": "Pairs an optimizer step."})
    reward_lora_r: int = field(default=0, metadata={"help": "Rank of its adapter, merged; 0: all weights."})

    reward_max_length: int = field(default=2048, metadata={"help": "Tokens of a prompt with its answer."})

    def check_reward_model(self) -> None:
        """Refuse numbers that mean nothing.

        Raises:
            ValueError: in one sentence.
        """
        least = {"reward_problems": 0, "reward_samples": 2, "reward_pairs": 1, "reward_batch_size": 1}
        for name, lowest in least.items():
            at_least(name, getattr(self, name), lowest)
        one_of("reward_dtype", self.reward_dtype, TYPES)
        if not 0.0 <= self.reward_replay < 1.0:
            raise ValueError(f"`reward_replay` is {self.reward_replay}; from 0 to below 1, 0.1 is usual.")


class ReplayedReward:
    """The reward model of the present round: a reward function, and what trains it at the start of each round.

    Args:
        args: how it is made and trained.
        problems: training rows, of which some are drawn for each round.
        tokenizer: the policy's.
        check: reward function that is above one half for a right answer.

    Attributes:
        history: for each training its round, pairs, replay and accuracy on held-out problems.
    """

    __name__ = "reward_model"

    def __init__(
        self,
        args: RoundRewardArguments,
        problems: Dataset,
        tokenizer: Any,
        check: Callable[..., Sequence[float | None]],
    ) -> None:
        self._args, self._problems, self._tokenizer, self._check = args, problems, tokenizer, check
        self._model = str(args.reward_model)
        self._pairs: list[str] = []
        self._reward: RewardModel | None = None
        self.history: list[dict[str, Any]] = []

    def __call__(
        self, prompts: Sequence[Completion], completions: Sequence[Completion], **columns: Any
    ) -> list[float | None]:
        """Score B completions, None for what is too long.

        Raises:
            RuntimeError: no round has begun.
        """
        if self._reward is None:
            raise RuntimeError("The reward model is loaded when the first round begins; set trainer.round_update.")
        return self._reward(prompts=prompts, completions=completions)

    # What `IterativeTrainer` calls

    def begin(self, number: int, trainer: Any) -> dict[str, float]:
        """Train the reward model where that is due, and take it for the reward."""
        found = {} if self._stays(number) else self._train(number, trainer)
        self._load(trainer)
        return found

    def state(self) -> dict[str, Any]:
        """Model and pairs, as paths below the output folder, and the history."""
        return {"reward_model": self._model, "pairs": self._pairs, "history": self.history}

    def restore(self, state: dict[str, Any], trainer: Any) -> None:
        """Take up what `state` gave, and load the model."""
        output, source = Path(trainer.args.output_dir), "the checkpoint's round.json"
        self._model, self._pairs, self.history = state["reward_model"], list(state["pairs"]), list(state["history"])
        # The model of the command line may be anywhere, what was made since is in the run's folder
        for path in [*self._pairs, *({self._model} - {str(self._args.reward_model)})]:
            inside(output, path, source)
        self._load(trainer)

    # Training

    def _stays(self, number: int) -> bool:
        if number > 0 and self._args.reward_problems == 0:
            return True
        if number > 0:
            return False
        config = opened(AutoConfig, resolve_model(self._model), "reward_model", trust_remote_code=None)
        kinds = config.architectures or [""]
        ready = kinds[0].endswith("ForSequenceClassification")
        if not ready and self._args.reward_problems == 0:
            raise ValueError(
                f"`reward_model` {self._model!r} is no sequence classifier and `reward_problems` is 0, so nothing "
                "makes a reward model of it; set a number of problems."
            )
        return ready

    def _train(self, number: int, trainer: Any) -> dict[str, float]:
        output = Path(trainer.args.output_dir)
        folder = output / "rounds" / f"round-{number + 1}"
        main, wait = trainer.accelerator.is_main_process, trainer.accelerator.wait_for_everyone
        if main:
            self._warn_of_waiting(trainer.args)
            # Left by a run that did not come as far as the next checkpoint, or by another run
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            self._make_pairs(trainer, number, folder)
        wait()
        new, held_out = _read(folder / "pairs.jsonl"), _read(folder / "held_out.jsonl")
        if new is None:
            return self._no_pairs(number)
        old = [row for path in self._pairs for row in _read(output / path) or ()]
        trained = train_reward_model(
            self._found(output),
            new,
            folder / "reward_model",
            held_out=held_out,
            replay=Dataset.from_list(old, features=new.features) if old else None,
            options=self._options(trainer, number),
        )
        self._model = str(trained.folder.relative_to(output))
        self._pairs.append(str((folder / "pairs.jsonl").relative_to(output)))
        kept = ("accuracy", "held_out_pairs", "new_pairs", "replayed", "replay_share")
        self.history.append({"round": number + 1, **{name: trained.summary[name] for name in kept}})
        _say(self.history[-1])
        return {
            f"reward_model_{name}": float(trained.summary[name]) for name in kept if trained.summary[name] is not None
        }

    def _warn_of_waiting(self, config: Any) -> None:
        """The other processes wait for the pairs, no longer than their time for anything else."""
        if config.world_size > 1 and config.ddp_timeout <= USUAL_TIMEOUT:
            logger.warning(
                "Reward model: one process draws %d x %d answers while the others wait, and they abort after "
                "`ddp_timeout` %g s; set a larger one if that takes longer.",
                self._args.reward_problems,
                self._args.reward_samples,
                config.ddp_timeout,
            )

    def _make_pairs(self, trainer: Any, number: int, folder: Path) -> None:
        """Pairs to train on and pairs of other problems to measure on, drawn anew for each round."""
        args, seed = self._args, trainer.args.seed + number
        held_out = max(1, args.reward_problems * HELD_OUT_PERCENT // 100)
        count = min(args.reward_problems, max(1, len(self._problems) - held_out))
        drawn = self._problems.shuffle(seed=seed).select(range(min(len(self._problems), count + held_out)))
        policy = trainer.accelerator.unwrap_model(trainer.model)
        training = policy.training
        policy.eval()
        made = make_pairs(
            policy,
            self._tokenizer,
            drawn,
            samples=args.reward_samples,
            pairs_per_problem=args.reward_pairs,
            check=self._check,
            max_completion_length=trainer.args.max_completion_length,
            temperature=trainer.args.temperature,
            seed=seed,
        )
        policy.train(training)
        measuring = {json.dumps(prompt) for prompt in drawn["prompt"][count:]}
        for name, wanted in (("pairs", False), ("held_out", True)):
            rows = [row for row in made.pairs if (json.dumps(row["prompt"]) in measuring) == wanted]
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
            (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")

    def _no_pairs(self, number: int) -> dict[str, float]:
        reason = "no problem has both right and wrong answers of the policy, so there is nothing to train on"
        if number == 0:
            raise ValueError(
                f"`reward_model` {self._model!r}: {reason}; ask for more reward_problems or reward_samples, "
                "or warm the policy up (sft_steps)."
            )
        print(f"Reward model: {reason}; it stays as it is.", flush=True)
        self.history.append({"round": number + 1, "new_pairs": 0})
        return {"reward_model_new_pairs": 0.0}

    def _options(self, trainer: Any, number: int) -> RewardTraining:
        args = self._args
        return RewardTraining(
            learning_rate=args.reward_learning_rate,
            epochs=args.reward_epochs,
            batch_size=args.reward_batch_size,
            lora_r=args.reward_lora_r,
            max_length=args.reward_max_length,
            dtype=args.reward_dtype,
            replay_share=args.reward_replay,
            seed=trainer.args.seed + number,
        )

    def _found(self, output: Path) -> str:
        return str(output / self._model) if (output / self._model).is_dir() else self._model

    def _load(self, trainer: Any) -> None:
        self._reward = load_reward_model(
            self._found(Path(trainer.args.output_dir)),
            device=trainer.accelerator.device,
            dtype=self._args.reward_dtype,
            batch_size=trainer.args.per_device_train_batch_size,
        )


def _read(path: Path) -> Dataset | None:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return Dataset.from_list(rows) if rows else None


def _say(row: dict[str, Any]) -> None:
    share = "not measured" if row["accuracy"] is None else f"{row['accuracy']:.1%} of held-out pairs"
    print(
        f"Reward model of round {row['round']}: {share}, trained on {row['new_pairs']} new pairs and "
        f"{row['replayed']} of earlier rounds ({row['replay_share']:.1%})",
        flush=True,
    )
