"""The run behind the recipe `rlhf`: its options, and which stages are still to be done.

Left out: several processes. The last stage has them as the recipe gsm8k, with `--reward_model`.
"""

import json
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from grpo_ext.callbacks import Interrupted
from grpo_ext.checks import at_least, check_output_dir, one_of
from grpo_ext.cli import parse
from grpo_ext.files import digest_of_file
from grpo_ext.flags import names_a_run
from grpo_ext.hub import push_run, take_over, without_token
from grpo_ext.recipes.arguments import DEFAULTS, PolicyArguments
from grpo_ext.recipes.preference_options import PreferenceArguments
from grpo_ext.recipes.rlhf_stages import STAGES, Stages
from grpo_ext.report import changed_fields, hardware, versions, write_json

# What runs when nothing is asked for: two cores, a real pretrained model, the built-in pairs.
QUICKSTART: dict[str, Any] = {
    "output_dir": "runs/rlhf",
    "train_size": 192,
    "eval_size": 64,
    "lora_r": 32,
    "sft_learning_rate": 5e-4,
    "sft_epochs": 2,
    # The paper's 2e-5 wants more than the 12 steps that there are here
    "reward_learning_rate": 1e-4,
    "reward_lora_r": 16,
    "reward_micro_batch_size": 4,
    "num_generations": 8,
    "per_device_train_batch_size": 32,
    "gradient_accumulation_steps": 2,
    "max_completion_length": 32,
    "learning_rate": 1e-4,
    "max_steps": 20,
    "gradient_checkpointing": False,
    "save_steps": 10,
    "sample_every": 5,
}
# Below the preset, the file and the flags. Without a KL term a policy ends where the reward model is wrong.
BASE: dict[str, Any] = {**DEFAULTS, "beta": 0.05}
OPTIONS, RECORD = "options.json", "summary.json"

# Options of all stages, those of a reward model in use, and those that change no result
BOTH = ("model_name_or_path", "backend", "dtype", "load_in_4bit", "lora_r", "lora_alpha", "max_seq_length")
SCORING = ("reward_model", "reward_dtype", "reward_load_in_8bit", "reward_load_in_4bit", "reward_label")
INDIFFERENT = (
    # Its fields are those of the config
    "preset",
    "health",
    "stop_on",
    "sample_every",
    "completions_mb",
    "hub_model_id",
    "hub_private_repo",
    "hub_revision",
    "reward_device",
    "reward_score_batch_size",
    "sft_micro_batch_size",
    "reward_micro_batch_size",
    "sft_save_steps",
    "reward_save_steps",
    "output_dir",
    "resume_from_checkpoint",
    "logging_dir",
    "run_name",
    "save_steps",
    "save_total_limit",
)


@dataclass
class RLHFArguments(PreferenceArguments, PolicyArguments):
    """What the recipe needs beyond the trainer's config; fields of the config are those of the last stage."""

    stages: list[str] = field(
        default_factory=lambda: list(STAGES),
        metadata={
            "help": f"Any of: {', '.join(STAGES)}, in this order. What is finished is not done again.",
            "nargs": "+",
        },
    )
    sft_learning_rate: float = field(default=2e-4, metadata={"help": "Of the supervised stage."})
    sft_epochs: float = field(default=1.0, metadata={"help": "Passes over the chosen answers."})
    sft_batch_size: int = field(default=16, metadata={"help": "Chosen answers an optimiser step."})
    sft_micro_batch_size: int | None = field(
        default=None, metadata={"help": "Chosen answers of a forward pass; unset: all of a step."}
    )
    sft_save_steps: int = field(default=100, metadata={"help": "Steps from one checkpoint to the next; 0: none."})
    reward_model: str | None = field(
        default=None, metadata={"help": "Folder or hub name of a reward model; unset: the one of stage reward."}
    )
    reward_base_model: str | None = field(
        default=None, metadata={"help": "What the reward model begins as; unset: the policy of stage sft."}
    )
    reward_learning_rate: float = field(default=2e-5, metadata={"help": "DeepSeekMath sec. 4.2: 2e-5."})
    reward_epochs: float = field(default=1.0, metadata={"help": "Passes over the pairs."})
    reward_batch_size: int = field(default=16, metadata={"help": "Pairs an optimiser step."})
    reward_micro_batch_size: int | None = field(
        default=None, metadata={"help": "Pairs of a forward pass; unset: all of a step."}
    )
    reward_lora_r: int = field(default=0, metadata={"help": "Rank of its adapter; 0 trains all weights."})
    reward_save_steps: int = field(default=100, metadata={"help": "Steps from one checkpoint to the next; 0: none."})
    reward_max_length: int = field(default=1024, metadata={"help": "Tokens of a prompt with its answer."})
    reward_dtype: str = field(default="auto", metadata={"help": "Type in which it scores; auto: as it was saved."})
    reward_device: str | None = field(
        default=None, metadata={"help": "Where it scores, such as cuda:1; unset: beside the policy."}
    )
    reward_load_in_8bit: bool = field(default=False, metadata={"help": "It scores with weights in 8 bit."})
    reward_load_in_4bit: bool = field(default=False, metadata={"help": "It scores with weights in 4 bit."})
    reward_score_batch_size: int = field(default=16, metadata={"help": "Conversations it reads at a time."})
    reward_label: str | None = field(
        default=None, metadata={"help": "Rewarded label of a `reward_model` that has several."}
    )

    def __post_init__(self) -> None:
        PolicyArguments.__post_init__(self)
        self.check_preferences()
        for name in self.stages:
            one_of("stages", name, STAGES)
        for name in ("sft_batch_size", "reward_batch_size", "reward_score_batch_size"):
            at_least(name, getattr(self, name))
        if self.reward_model is not None:
            self.stages = [name for name in self.stages if name != "reward"]
        if not self.stages:
            raise ValueError(
                f"`stages` leaves nothing to do with `reward_model` {self.reward_model!r}, which stands in for stage "
                "reward; name sft or grpo, or leave reward_model unset."
            )


def options_of(stage: str, run: Stages) -> dict[str, Any]:
    """What a stage's result depends on, as JSON would give it back.

    Args:
        stage: row of `STAGES`.
        run: the run; its pairs and what the stages before have left count by their digests.
    """
    args = asdict(run.args)
    names = [
        *BOTH,
        *PreferenceArguments.__dataclass_fields__,
        *(name for name in args if name.startswith(f"{stage}_")),
    ]
    own = {name: args[name] for name in names if name not in (*SCORING, *INDIFFERENT)}
    if stage == "grpo":
        more = {name: args[name] for name in (*SCORING, *PolicyArguments.__dataclass_fields__)}
        own |= {name: value for name, value in (more | changed_fields(run.config)).items() if name not in INDIFFERENT}
    own |= {"seed": run.config.seed, "pairs": run.pairs}
    records = {name: run.folder / name / RECORD for name in run.before(stage)}
    own |= {f"stage {name}": digest_of_file(path) if path.is_file() else None for name, path in records.items()}
    return json.loads(json.dumps(own, default=str))


def _refuse_another(stage: str, folder: Path, found: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """See that a stage was begun with what is asked for."""
    said = {
        "pairs": "was begun with other rows of `preferences`",
        **{f"stage {name}": f"does not follow on the stage {name} that is there now" for name in STAGES},
    }
    # Options first, since pairs and stages follow from them
    for name in sorted(asked.keys() | found.keys(), key=lambda name: (name in said, name)):
        before, now = found.get(name), asked.get(name)
        if before != now:
            why = said.get(name) or f"was begun with `{name}` {before!r}, not {now!r}"
            again = "use another output_dir, or delete that folder to do the stage again."
            raise ValueError(f"stage {stage} in {folder} {why}; {again}")


def perform(stage: str, run: Stages) -> dict[str, Any]:
    """Do a stage, or read what it left when it was finished before.

    Args:
        stage: row of `STAGES`.
        run: the run.

    Returns:
        The stage's summary.

    Raises:
        ValueError: the folder holds this stage with other options, pairs, or stages before it.
    """
    folder = run.folder / stage
    folder.mkdir(parents=True, exist_ok=True)
    options, before = options_of(stage, run), folder / OPTIONS
    if before.is_file():
        _refuse_another(stage, folder, json.loads(before.read_text(encoding="utf-8")), options)
    record = folder / RECORD
    if record.is_file():
        print(f"Stage {stage}: finished before, in {folder}", flush=True)
        return json.loads(record.read_text(encoding="utf-8"))
    write_json(before, options)
    print(f"Stage {stage}: in {folder}", flush=True)
    started = time.time()
    summary = STAGES[stage](run, folder)
    summary |= {"command": run.command, "model": run.args.model_name_or_path, "dataset": run.args.preferences}
    summary |= {"recipe": asdict(run.args), "config": changed_fields(run.config)}
    summary |= {"versions": versions(), "hardware": hardware(), "seconds": round(time.time() - started, 1)}
    write_json(record, summary)
    return summary


def main(argv: Sequence[str]) -> int:
    """Do the stages that are asked for and not finished.

    Args:
        argv: the words after the command.

    Returns:
        Exit code: 0, 130 after Ctrl-C, 75 after SIGTERM, or 3 when a finding named in `stop_on` ended it; the same
        command goes on with it.
    """
    started = time.time()
    args, config = parse(RLHFArguments, argv, BASE | ({} if names_a_run(argv) else QUICKSTART))
    if config.world_size > 1:
        raise ValueError(
            f"The recipe rlhf runs in one process, and {config.world_size} were started; run it alone, or launch its "
            "last stage as the recipe gsm8k with reward_model=FOLDER/reward/model."
        )
    folder = Path(config.output_dir)
    check_output_dir(folder)
    target = take_over(config)
    command = shlex.join(["python", "-m", "grpo_ext.recipes.rlhf", *without_token(argv)])
    run = Stages(args, config, folder, args.load(config.seed), command)
    summaries: dict[str, Any] = {}
    try:
        for stage in STAGES:
            if stage in args.stages:
                summaries[stage] = perform(stage, run)
    except Interrupted as stopped:
        print(f"{stopped} The same command goes on with it.", flush=True)
        return stopped.code
    whole = {
        "stages": summaries,
        "command": command,
        "recipe": asdict(args),
        "seconds": round(time.time() - started, 1),
    }
    write_json(folder / RECORD, whole)
    print(f"{whole['seconds']:.0f} s; summary.json in {folder}", flush=True)
    if target is not None and "grpo" in summaries:
        print(f"Uploaded: {push_run(folder / 'grpo', target, reuse=False)}", flush=True)
    return 0
