"""Ranges of numbers as tables: what TRL and transformers take without a word and stumble over later."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

Limit = tuple[str, Callable[[Any], bool]]

COUNT: Limit = ("at least 1", lambda x: x >= 1)
NOT_NEGATIVE: Limit = ("0 or more", lambda x: x >= 0)
POSITIVE: Limit = ("above 0", lambda x: x > 0)
SHARE: Limit = ("from 0 to 1", lambda x: 0 <= x <= 1)
POSITIVE_SHARE: Limit = ("above 0 and at most 1", lambda x: 0 < x <= 1)
DECAY: Limit = ("from 0 to below 1", lambda x: 0 <= x < 1)
PORT: Limit = ("from 0 to 65535", lambda x: 0 <= x <= 65535)
# numpy takes 32 bits, and each process adds its number
SEED: Limit = ("from 0 to 4294900000", lambda x: 0 <= x <= 4_294_900_000)
# Each is a process; a number with too many noughts would fill the machine with them
WORKERS: Limit = ("from 0 to 1024", lambda x: 0 <= x <= 1024)
OFF_BELOW_ZERO: Limit = ("at least 1, or 0 or -1 for none", lambda x: x >= -1)

# Field -> what a number in it must be; None is left to the field's type
LIMITS: dict[str, Limit] = {
    **dict.fromkeys(
        (
            "dataloader_prefetch_factor",
            "eval_accumulation_steps",
            "generation_batch_size",
            "gradient_accumulation_steps",
            "max_completion_length",
            "num_beams",
            "num_generations_eval",
            "num_iterations",
            "pad_to_multiple_of",
            "per_device_eval_batch_size",
            "per_device_train_batch_size",
            "ref_model_sync_steps",
            "scoring_tokens",
            "steps_per_generation",
            "torch_empty_cache_steps",
            "vllm_max_model_length",
            "vllm_tensor_parallel_size",
        ),
        COUNT,
    ),
    **dict.fromkeys(
        (
            "adam_epsilon",
            "beta",
            "delta",
            "diversity_penalty",
            "epsilon",
            "epsilon_high",
            "eval_delay",
            "eval_steps",
            "learning_rate",
            "logging_steps",
            "max_failed_saves",
            "max_memory_halvings",
            "max_skipped_steps",
            "max_tool_calling_iterations",
            "neftune_noise_alpha",
            "num_completions_to_print",
            "num_train_epochs",
            "save_steps",
            "vllm_importance_sampling_clip_max",
            "vllm_importance_sampling_clip_min",
            "warmup_steps",
            "weight_decay",
        ),
        NOT_NEGATIVE,
    ),
    **dict.fromkeys(
        (
            "advantage_eps",
            "ddp_bucket_cap_mb",
            "ddp_timeout",
            "kl_target",
            "repetition_penalty",
            "sapo_temperature_neg",
            "sapo_temperature_pos",
            "temperature",
            "vllm_request_timeout",
            "vllm_server_timeout",
        ),
        POSITIVE,
    ),
    **dict.fromkeys(("label_smoothing_factor", "min_p", "ref_model_mixup_alpha", "top_entropy_quantile"), SHARE),
    **dict.fromkeys(("top_p", "vllm_gpu_memory_utilization"), POSITIVE_SHARE),
    **dict.fromkeys(("adam_beta1", "adam_beta2"), DECAY),
    **dict.fromkeys(("vllm_group_port", "vllm_server_port"), PORT),
    **dict.fromkeys(("data_seed", "seed"), SEED),
    "dataloader_num_workers": WORKERS,
    **dict.fromkeys(("max_steps", "top_k"), OFF_BELOW_ZERO),
}

# The same for the options of recipes
RECIPE_LIMITS: dict[str, Limit] = {
    **dict.fromkeys(
        (
            "batch_size",
            "epochs",
            "eval_batch_size",
            "eval_size",
            "held_out",
            "lora_alpha",
            "max_length",
            "max_seq_length",
            "micro_batch_size",
            "pairs_per_problem",
            "problems",
            "reward_batch_size",
            "reward_max_length",
            "reward_micro_batch_size",
            "reward_score_batch_size",
            "rollouts",
            "sft_batch_size",
            "sft_micro_batch_size",
            "solutions",
            "train_size",
        ),
        COUNT,
    ),
    **dict.fromkeys(
        (
            "completions_mb",
            "lora_r",
            "reward_learning_rate",
            "reward_lora_r",
            "reward_save_steps",
            "sample_every",
            "sft_learning_rate",
            "sft_save_steps",
            "sft_steps",
        ),
        NOT_NEGATIVE,
    ),
    **dict.fromkeys(("reward_epochs", "sft_epochs"), POSITIVE),
}


def check_numbers(instance: Any) -> None:
    """Check the numbers of a config or of a recipe's options, whose fields have the annotated types.

    Args:
        instance: of a dataclass.

    Raises:
        ValueError: in one sentence.
    """
    limits = {**LIMITS, **RECIPE_LIMITS}
    # By field, because TrainingArguments has properties of such names that set up the device
    for name in (spec.name for spec in fields(instance) if spec.name in limits):
        value, (words, holds) = getattr(instance, name), limits[name]
        if value is not None and not isinstance(value, str) and not holds(value):
            raise ValueError(f"`{name}` is {value}; it must be {words}.")
