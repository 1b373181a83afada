"""The options of the recipes: which policy, which problems, which rewards."""

from dataclasses import dataclass, field
from typing import Any

from grpo_ext.backends import BACKENDS
from grpo_ext.checks import at_least, one_of
from grpo_ext.data.arithmetic import DIFFICULTIES
from grpo_ext.health import HealthOptions
from grpo_ext.models.saving import SAVE_FORMATS
from grpo_ext.presets import PRESETS
from grpo_ext.recipes.iterative import RoundRewardArguments
from grpo_ext.recipes.problems import DATASETS, TRAINED_ON, problems_named
from grpo_ext.rewards import ANSWER_FORMATS, REWARDS

# Below everything else
DEFAULTS: dict[str, Any] = {"report_to": "none", "logging_steps": 1}


@dataclass
class PolicyArguments(HealthOptions):
    """Which policy is trained, and what a run shows of it; for every recipe with a `GRPOExtTrainer`."""

    preset: str | None = field(
        default=None,
        metadata={"help": "Named objective, overridden by the YAML file and by flags.", "choices": list(PRESETS)},
    )
    model_name_or_path: str = field(
        default="HuggingFaceTB/SmolLM2-135M-Instruct", metadata={"help": "Folder or hub name of the policy."}
    )
    backend: str = field(
        default="transformers",
        metadata={"help": "What loads and runs the policy; unsloth is imported first.", "choices": list(BACKENDS)},
    )
    dtype: str = field(default="bfloat16", metadata={"help": "Weights of the base: bfloat16, float32 or float16."})
    load_in_4bit: bool = field(default=False, metadata={"help": "NF4 base weights through bitsandbytes."})
    lora_r: int = field(default=16, metadata={"help": "Rank of the adapter; 0 trains all weights."})
    lora_alpha: int | None = field(default=None, metadata={"help": "Scale of the adapter; unset: twice the rank."})
    max_seq_length: int | None = field(
        default=None, metadata={"help": "Longest sequence, for unsloth alone; unset: the model's window."}
    )
    fast_inference: bool = field(
        default=False, metadata={"help": "vLLM over the policy's own weights, for unsloth on a GPU."}
    )
    save_format: list[str] | None = field(
        default=None,
        metadata={
            "help": f"Any of: {', '.join(SAVE_FORMATS)}; unset: the adapter, or the model without one.",
            "nargs": "+",
        },
    )
    sample_every: int = field(
        default=10, metadata={"help": "Show a group's best and worst every so many steps; 0: never."}
    )
    completions_mb: float = field(
        default=16.0, metadata={"help": "Size of completions.jsonl at most, in megabytes; 0: none is kept."}
    )

    max_generated_tokens: int | None = field(
        default=None,
        metadata={"help": "Ends training with the step that reaches so many generated tokens; unset: max_steps."},
    )

    def __post_init__(self) -> None:
        HealthOptions.__post_init__(self)
        if self.max_generated_tokens is not None:
            at_least("max_generated_tokens", self.max_generated_tokens)
        one_of("backend", self.backend, BACKENDS)
        self.save_format = self.save_format or ["adapter" if self.lora_r else "model"]
        for name in self.save_format:
            one_of("save_format", name, SAVE_FORMATS)


@dataclass
class RecipeArguments(RoundRewardArguments, PolicyArguments):
    """What a recipe on problems with answers needs beyond the trainer's config."""

    dataset: str = field(
        default="gsm8k",
        metadata={"help": f"Training problems: {', '.join(TRAINED_ON)}, or a file of yours that ends in .jsonl."},
    )
    eval_datasets: list[str] | None = field(
        default=None,
        metadata={
            "help": "Held-out problems, any number of sets or files; unset: of the training set's own.",
            "nargs": "+",
        },
    )
    difficulty: str = field(
        default="mixed", metadata={"help": "Of the built-in arithmetic.", "choices": list(DIFFICULTIES)}
    )
    answer_format: str | None = field(
        default=None,
        metadata={"help": "Format the prompt asks for; unset: the data set's.", "choices": list(ANSWER_FORMATS)},
    )
    system_prompt: str | None = field(default=None, metadata={"help": "System message of the prompts."})
    train_size: int | None = field(default=None, metadata={"help": "Training problems; unset: all."})
    eval_size: int = field(default=200, metadata={"help": "Held-out problems of a set, answered before and after."})
    eval_batch_size: int = field(default=64, metadata={"help": "Problems answered at a time."})
    reward_funcs: list[str] | None = field(
        default=None,
        metadata={
            "help": f"Any of: {', '.join(REWARDS)}; unset: reward_model, or the data set's strict reader.",
            "nargs": "+",
        },
    )
    sft_dataset: str | None = field(
        default=None, metadata={"help": "Worked answers of the warm-up, a set or a file; unset: the training set's."}
    )
    sft_steps: int = field(default=0, metadata={"help": "Supervised warm-up steps before anything is measured."})
    sft_batch_size: int = field(default=16, metadata={"help": "Worked answers a warm-up step."})
    sft_learning_rate: float = field(default=3e-4, metadata={"help": "Of the warm-up."})

    def __post_init__(self) -> None:
        PolicyArguments.__post_init__(self)
        self.check_reward_model()
        row = problems_named("dataset", self.dataset, TRAINED_ON)
        self.answer_format = self.answer_format or row.answer_format
        self.reward_funcs = self.reward_funcs or ([] if self.reward_model else [row.reward])
        if self.eval_datasets is None and self.dataset not in DATASETS:
            raise ValueError(
                f"`eval_datasets` is unset, and the file {self.dataset!r} has no held-out split; name another "
                f"file, or any of: {', '.join(DATASETS)}."
            )
        self.eval_datasets = self.eval_datasets or [self.dataset]
        problems_named("sft_dataset", self.sft_dataset or self.dataset, TRAINED_ON)
        one_of("answer_format", self.answer_format, ANSWER_FORMATS)
        one_of("difficulty", self.difficulty, DIFFICULTIES)
        for name in self.reward_funcs:
            one_of("reward_funcs", name, REWARDS)
        for name in self.eval_datasets:
            problems_named("eval_datasets", name)
        for name in ("eval_size", "eval_batch_size", "sft_batch_size"):
            at_least(name, getattr(self, name))
