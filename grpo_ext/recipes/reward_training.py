"""Training a reward model on preference pairs with TRL's `RewardTrainer`, and measuring it on held-out pairs."""

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from peft import LoraConfig, TaskType
from transformers import AutoConfig, AutoModelForSequenceClassification, TrainerState, set_seed
from trl import RewardConfig, RewardTrainer

from grpo_ext.callbacks import without_stock_output
from grpo_ext.checks import one_of
from grpo_ext.files import digest
from grpo_ext.models import load_tokenizer, resolve_model
from grpo_ext.recipes.reward_accuracy import UNKNOWN, accuracy
from grpo_ext.recipes.supervised import Stage, begun, divides, stage_options
from grpo_ext.report import write_json
from grpo_ext.rewards.classifiers import agree_on_padding
from grpo_ext.rewards.reward_model import RECORD, RewardModel, conversation_ids
from grpo_ext.trust import opened

TYPES = ("bfloat16", "float16", "float32")
# Options that change no result, so that a finished model is taken whatever they are
INDIFFERENT = ("micro_batch_size", "save_steps", "precision")
# What a half-finished model is trained on, beside its checkpoints
BEGUN = "begun.json"


@dataclass(frozen=True)
class RewardTraining:
    """How a reward model is trained.

    Attributes:
        learning_rate: of AdamW; DeepSeekMath (2402.03300), sec. 4.2: 2e-5. It falls in a line to 0.
        epochs: passes over the pairs.
        batch_size: pairs an optimiser step.
        micro_batch_size: pairs of a forward pass; None: all of a step.
        lora_r: rank of an adapter, merged before the model is saved; 0 trains all weights.
        max_length: tokens of a conversation; a pair with a longer side is left out.
        dtype: type of the weights, in training and saved.
        replay_share: share of old pairs in the training set; DeepSeekMath, sec. 4.1.4: 10 %.
        save_steps: steps from one checkpoint to the next; 0: none.
        precision: of autocast: "no", "bf16" or "fp16"; None: that of a trainer before in this process.
        seed: of the head, the order and the replayed pairs.
    """

    learning_rate: float = 2e-5
    epochs: float = 1.0
    batch_size: int = 16
    micro_batch_size: int | None = None
    lora_r: int = 0
    max_length: int = 1024
    dtype: str = "float32"
    replay_share: float = 0.1
    save_steps: int = 0
    precision: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("learning_rate", "epochs", "batch_size", "max_length"):
            if getattr(self, name) <= 0:
                raise ValueError(f"`{name}` of the reward model is {getattr(self, name)}; it must be above 0.")
        if not 0.0 <= self.replay_share < 1.0:
            raise ValueError(f"`replay_share` is {self.replay_share}; it must be at least 0 and below 1.")
        one_of("dtype", self.dtype, TYPES)
        divides("micro_batch_size", self.micro_batch_size, "batch_size", self.batch_size)


class TrainedReward(NamedTuple):
    """A trained reward model.

    Attributes:
        folder: model, tokenizer and `reward_model.json`.
        summary: what the JSON file says.
    """

    folder: Path
    summary: dict[str, Any]


def train_reward_model(
    model_or_path: str | Path,
    pairs: Dataset,
    output_dir: str | Path,
    *,
    held_out: Dataset | None = None,
    replay: Dataset | None = None,
    options: RewardTraining | None = None,
) -> TrainedReward:
    """Minimise −log σ(r(chosen) − r(rejected)), mean over pairs, and measure the accuracy on held-out pairs.

    A folder that holds a finished model of this base, these options and these pairs is returned as it is. A
    half-finished one goes on from its newest checkpoint, where `save_steps` made one.

    Args:
        model_or_path: folder or hub name of a sequence classifier with one output, which is trained on, or of a
            causal language model, which gets a new head.
        pairs: new pairs: `prompt`, `chosen` and `rejected`.
        output_dir: becomes the model's folder; a folder of its own for each round.
        held_out: pairs to measure on, with other prompts.
        replay: all pairs of earlier rounds, of which so many are drawn that they make up `replay_share`.
        options: how it is trained; None: the defaults.

    Returns:
        Folder and summary.

    Raises:
        OSError: there is no such model.
        ValueError: no pair can be trained on, the classifier has several outputs, or the folder holds a model that was
            trained otherwise.
        Interrupted: Ctrl-C or SIGTERM; the same call goes on.
    """
    started, options, folder = time.time(), options or RewardTraining(), Path(output_dir)
    data = {"pairs": pairs, "held_out": held_out, "replay": replay}
    digests = {name: digest(() if rows is None else rows) for name, rows in data.items()}
    asked = {"base": str(model_or_path), "options": asdict(options), "data": digests}
    finished = _left(folder, asked)
    if finished is not None:
        return finished
    path = resolve_model(model_or_path)
    tokenizer = load_tokenizer(path, trust_remote_code=None)
    set_seed(options.seed)
    model = _classifier(path, options.dtype)
    agree_on_padding(model, tokenizer)
    mixed, replayed = with_replay(pairs, replay, options.replay_share, options.seed)
    kept = _that_fit(pair_ids(mixed, tokenizer), options.max_length)
    checkpoint = begun(folder / "checkpoints")
    trainer = _trainer(model, tokenizer, kept, folder / "checkpoints", options)
    if trainer.is_world_process_zero():
        write_json(folder / "checkpoints" / BEGUN, asked)
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.interrupt.stopped("Training of the reward model", trainer.state.global_step)

    model = trainer.accelerator.unwrap_model(trainer.model)
    if options.lora_r:
        model = model.merge_and_unload()
    reader = RewardModel(model, tokenizer, batch_size=2 * options.batch_size)
    summary = {
        **(accuracy(reader, held_out) if held_out else UNKNOWN),
        "new_pairs": len(pairs),
        "replayed": replayed,
        "replay_share": replayed / len(mixed),
        "left_out": len(mixed) - len(kept),
        **_learned(trainer.state),
        **asked,
    }
    summary["seconds"] = round(time.time() - started, 1)
    if trainer.is_world_process_zero():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        # Last, because this file says that the folder is complete
        write_json(folder / RECORD, summary)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    return TrainedReward(folder, summary)


def _that_fit(rows: Sequence[Mapping[str, Any]], longest: int) -> Dataset:
    """The pairs of which both sides have at most so many tokens."""
    kept = [row for row in rows if max(len(row["chosen_ids"]), len(row["rejected_ids"])) <= longest]
    if not kept:
        raise ValueError(f"none of {len(rows)} pairs fits into `max_length` {longest} tokens.")
    return Dataset.from_list(kept)


def _learned(state: TrainerState) -> dict[str, Any]:
    history = [row for row in state.log_history if "loss" in row]
    return {
        "steps": state.global_step,
        "losses": [float(row["loss"]) for row in history],
        "train_accuracy": float(history[-1]["accuracy"]),
    }


def _left(folder: Path, asked: Mapping[str, Any]) -> TrainedReward | None:
    """The finished model of a folder; what is there, finished or not, must be what is asked for."""
    for path in (folder / RECORD, folder / "checkpoints" / BEGUN):
        if path.is_file():
            found = json.loads(path.read_text(encoding="utf-8"))
            _refuse_another(folder, found, asked)
            if path.name == RECORD:
                print(f"{folder} holds this reward model already; it is taken as it is.", flush=True)
                return TrainedReward(folder, found)
    return None


def _refuse_another(folder: Path, found: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """See that a folder holds a training of the base, the options and the data that are asked for."""
    other = "use another output_dir, or delete that folder to train anew."
    before, now = ({"base": about["base"], **about["options"]} for about in (found, asked))
    for name in sorted(before.keys() & now.keys() - set(INDIFFERENT)):
        if before[name] != now[name]:
            raise ValueError(
                f"{folder} holds a reward model that was trained with `{name}` {before[name]!r}, not {now[name]!r}; "
                f"{other}"
            )
    changed = [name for name, known in asked["data"].items() if found["data"][name] != known]
    if changed:
        raise ValueError(f"{folder} holds a reward model of other data ({', '.join(changed)}); {other}")


def with_replay(pairs: Dataset, replay: Dataset | None, share: float, seed: int) -> tuple[Dataset, int]:
    """New pairs and so many old ones, drawn at random, that these are a share of the whole.

    Args:
        pairs: N new pairs.
        replay: all old pairs.
        share: s; round(N · s / (1 − s)) old pairs are taken, or all where there are fewer.
        seed: of the draw.

    Returns:
        The pairs, the old ones last, and their number.

    Raises:
        ValueError: there are no new pairs.
    """
    if not len(pairs):
        raise ValueError("there are no new pairs to train the reward model on.")
    columns = ["prompt", "chosen", "rejected"]
    count = 0 if replay is None else min(len(replay), round(len(pairs) * share / (1 - share)))
    if replay is None or count == 0:
        return pairs.select_columns(columns), 0
    new = pairs.select_columns(columns)
    old = replay.select_columns(columns).shuffle(seed=seed).select(range(count))
    return Dataset.from_list([*new, *old], features=new.features), count


def pair_ids(pairs: Dataset, tokenizer: Any) -> list[dict[str, list[int]]]:
    """Pairs in the tokens in which `RewardModel` reads them, as `RewardTrainer` takes them."""
    return [
        {f"{side}_ids": conversation_ids(row["prompt"], row[side], tokenizer) for side in ("chosen", "rejected")}
        for row in pairs
    ]


def _classifier(path: str, dtype: str) -> Any:
    config = opened(AutoConfig, path, "base_model", trust_remote_code=None)
    names = config.architectures or ["a bare configuration"]
    if names[0].endswith("ForSequenceClassification") and config.num_labels != 1:
        raise ValueError(
            f"`{path}` is a classifier with {config.num_labels} labels; a reward model has one output, so begin with "
            "a causal language model or a classifier with num_labels=1."
        )
    options = {"num_labels": 1, "dtype": getattr(torch, dtype)}
    return opened(AutoModelForSequenceClassification, path, "base_model", trust_remote_code=None, **options)


class RewardStage(Stage, RewardTrainer):
    """TRL's `RewardTrainer` with whole checkpoints."""


def _trainer(model: Any, tokenizer: Any, rows: Dataset, folder: Path, options: RewardTraining) -> RewardStage:
    shared = stage_options(folder, options)
    config = RewardConfig(**shared, max_length=None, gradient_checkpointing=not shared["use_cpu"])
    adapter = None
    if options.lora_r:
        adapter = LoraConfig(
            task_type=TaskType.SEQ_CLS,
            r=options.lora_r,
            lora_alpha=2 * options.lora_r,
            lora_dropout=0.0,
            target_modules="all-linear",
            bias="none",
        )
    trainer = RewardStage(
        model=model, args=config, train_dataset=rows, processing_class=tokenizer, peft_config=adapter
    )
    without_stock_output(trainer)
    return trainer
