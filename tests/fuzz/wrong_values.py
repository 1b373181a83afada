"""Values that a field should not hold, made from its annotation, so that a new field needs no line here."""

import math
import reprlib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any, get_origin, get_type_hints

from hypothesis import strategies as st
from transformers import TrainingArguments

from grpo_ext import GRPOExtConfig
from grpo_ext.checks import members

HUGE = 2**40
NUMBERS = [math.nan, math.inf, -math.inf, 1e300, -1.0, 0.0, 10**400]
# Annotated type -> values that are not of it, or that mean nothing there
WRONG: dict[Any, list[Any]] = {
    bool: ["maybe", [], 3, math.nan],
    int: ["three", -1, 0, HUGE, 2**70, 1.5, math.nan, math.inf, [], {"a": 1}],
    float: ["x", *NUMBERS, [], {"a": 1}],
    str: ["", "nonsense", "\x00", "\ud800", 3, [], {"a": 1}, b"x"],
    list: ["x", [1], [None], [], {"a": 1}, 3, [[]]],
    dict: ["{bad", "nonsense", [3], {"nonsense": 1}, {1: 2}, 3, []],
    Enum: ["", "nonsense", 3, [], {"a": 1}],
}
# Fields of which a value that is taken is not run with, and why
NOT_RUN = {
    "deepspeed": "needs a launcher",
    "fsdp": "needs a launcher",
    "hub_token": "goes to the hub",
    "output_dir": "is set by the test",
    "torch_compile_backend": "compiles for minutes",
    "torch_compile_mode": "compiles for minutes",
}
HOSTS = {spec.name for spec in fields(TrainingArguments)}


@dataclass(frozen=True)
class Case:
    """Fields of a config, the one that is wrong first, and whether it is run with where the config takes it."""

    given: dict[str, Any]
    runs: bool = True

    @property
    def name(self) -> str:
        return next(iter(self.given))

    def __str__(self) -> str:
        return ",".join(f"{name}={reprlib.repr(value)}" for name, value in self.given.items())


def hints() -> dict[str, Any]:
    """Annotation of each field of the config that a caller may set."""
    annotated = get_type_hints(GRPOExtConfig)
    return {spec.name: annotated[spec.name] for spec in fields(GRPOExtConfig) if spec.init}


def kinds(hint: Any) -> list[Any]:
    """Keys of `WRONG` that an annotation has."""
    parts = [get_origin(part) or part for part in members(hint)]
    if any(isinstance(part, type) and issubclass(part, Enum) for part in parts):
        return [Enum]
    return [part for part in parts if part in WRONG]


def is_huge(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) > 1e6


def cases() -> Iterator[Case]:
    """Every field with every wrong value of its types, and None."""
    for name, hint in hints().items():
        values = [value for kind in kinds(hint) for value in WRONG[kind]]
        values.append(None)
        for value in {reprlib.repr(value): value for value in values}.values():
            # A huge number may be right, and then the run is as long or as large as it says
            yield Case({name: value}, runs=name not in NOT_RUN and not is_huge(value))


# Pairs that contradict each other, or that one might expect to
PAIRS: list[dict[str, Any]] = [
    # Reference and KL
    {"sync_ref_model": True, "beta": 0.0},
    {"sync_ref_model": True, "beta": 0.1},
    {"sync_ref_model": True, "num_rounds": 2, "steps_per_round": 1, "beta": 0.1},
    {"ratio_against": "reference", "beta": 0.0},
    {"kl_estimator": "k1", "beta": 0.1},
    {"kl_estimator": "k3_corrected", "kl_in": "reward", "beta": 0.1},
    {"kl_in": "reward", "beta": 0.0},
    {"kl_in": "reward", "kl_against": "old", "beta": 0.1},
    {"kl_in": "reward", "multi_objective_aggregation": "normalize_then_sum", "beta": 0.1},
    {"kl_against": "old", "num_iterations": 2, "beta": 0.1},
    {"kl_against": "old", "beta": 0.0},
    {"kl_controller": "ziegler", "beta": 0.0, "kl_target": 0.1},
    {"kl_controller": "ppo", "beta": 0.1},
    {"kl_target": 0.1, "beta": 0.1},
    {"kl_target": 0.1, "beta": 0.1, "kl_controller": "fixed"},
    {"beta": -0.1, "kl_controller": "ppo", "kl_target": 0.1},
    {"num_rounds": 2, "beta": 0.0, "steps_per_round": 1},
    {"steps_per_round": 3, "num_rounds": 1},
    {"num_rounds": 3, "max_steps": 2},
    # Batches
    {"num_generations": 3, "per_device_train_batch_size": 4},
    {"generation_batch_size": 4, "steps_per_generation": 2},
    {"generation_batch_size": 3, "per_device_train_batch_size": 2},
    {"generation_batch_size": 6, "per_device_train_batch_size": 2, "num_generations": 4},
    {"steps_per_generation": 3, "num_generations": 4},
    {"auto_find_batch_size": True, "per_device_train_batch_size": 2},
    {"per_device_train_batch_size": 64, "num_generations": 2},
    {"num_generations_eval": 3, "eval_strategy": "steps"},
    # Groups
    {"num_beams": 1, "group_generation": "beam"},
    {"num_beams": 3, "group_generation": "sampling"},
    {"num_beams": 2, "group_generation": "beam+sampling"},
    {"num_beam_groups": 5, "group_generation": "diverse_beam", "num_beams": 4},
    {"num_beam_groups": 0, "group_generation": "diverse_beam"},
    {"group_generation": "beam", "top_p": 0.5},
    {"group_generation": "beam", "temperature": 0.5, "length_penalty": -1.0},
    {"group_generation": "stochastic_beam", "scale_rewards": "batch"},
    {"group_generation": "stochastic_beam", "scale_rewards": "none", "length_penalty": 0.5},
    {"group_generation": "stochastic_beam", "scale_rewards": "none", "top_p": 0.5},
    {"group_generation": "stochastic_beam", "scale_rewards": "none", "top_k": 3},
    {"group_generation": "stochastic_beam", "scale_rewards": "none", "num_beams": 4},
    {"group_generation": "stochastic_beam", "scale_rewards": "none", "group_by": "kind"},
    {"group_generation": "stochastic_beam", "scale_rewards": "none", "process_reward": "calculations"},
    {"group_generation": "beam", "use_transformers_continuous_batching": True},
    {"group_generation": "beam", "cache_implementation": "static"},
    {"cache_implementation": "nonsense", "group_generation": "sampling"},
    {"generation_kwargs": {"num_beams": 4}},
    {"generation_kwargs": {"nonsense": 4}},
    {"generation_kwargs": {"max_new_tokens": 0}},
    {"generation_kwargs": {"do_sample": False}},
    {"generation_kwargs": {"temperature": -1.0}},
    {"generation_kwargs": {"eos_token_id": "x"}},
    {"generation_kwargs": {"stop_strings": ["a"]}},
    {"chat_template_kwargs": {"nonsense": 1}},
    {"model_init_kwargs": {"nonsense": 1}},
    # Resampling and process rewards
    {"resampling": "dynamic_sampling", "group_by": "kind"},
    {"resampling": "dynamic_sampling", "advantage_baseline": "none"},
    {"resampling": "dynamic_sampling", "process_reward": "calculations"},
    {"resampling": "dynamic_sampling", "resampling_rounds": 0},
    {"resampling": "adaptive_group_size", "initial_group_size": 1},
    {"resampling": "adaptive_group_size", "initial_group_size": 9},
    {"resampling": "adaptive_group_size", "group_generation": "beam"},
    {"initial_group_size": 2, "resampling": None},
    {"process_reward": "calculations", "kl_in": "reward", "beta": 0.1},
    {"process_reward": "calculations", "multi_objective_aggregation": "normalize_then_sum"},
    {"process_reward": "calculations", "importance_sampling_level": "sequence"},
    {"process_reward": "calculations", "surrogate": "geometric"},
    {"process_reward": "model"},
    {"process_reward_model": "somewhere", "process_reward": "calculations"},
    {"process_weight": 0.5, "process_reward": None},
    {"process_separator": "", "process_reward": "calculations"},
    {"process_rollouts": 0, "process_reward": "rollouts_hard"},
    # Objective
    {"scale_rewards": "batch", "multi_objective_aggregation": "normalize_then_sum"},
    {"scale_rewards": "none", "loss_type": "grpo"},
    {"loss_type": "dr_grpo", "scale_rewards": "group"},
    {"loss_type": "vespo", "importance_sampling_level": "sequence"},
    {"loss_type": "sapo", "importance_sampling_level": "sequence"},
    {"loss_type": "cispo", "delta": 2.0},
    {"surrogate": "soft", "importance_sampling_level": "sequence_sum"},
    {"surrogate": "none", "use_adaptive_entropy": True},
    {"entropy_coef_min": 1.0, "entropy_coef_max": 0.0, "use_adaptive_entropy": True},
    {"top_entropy_quantile": 0.0, "entropy_coef": 0.1},
    {"mask_truncated_completions": True, "max_completion_length": 1},
    {"off_policy_mask_threshold": 0.0, "surrogate": "clip"},
    {"epsilon": 0.5, "epsilon_high": 0.1},
    {"advantage_eps": 1e-3, "scale_rewards": "none"},
    {"advantage_baseline": "none", "scale_rewards": "batch"},
    {"group_by": "nowhere"},
    {"reward_weights": [1.0, 2.0]},
    {"reward_weights": []},
    {"reward_weights": [math.nan]},
    {"reward_weights": [0.0]},
    # Scoring
    {"scoring": "padded", "scoring_attention": "sdpa"},
    {"scoring": "tree", "scoring_attention": "flex"},
    {"scoring": "tree", "scoring_attention": "varlen"},
    {"scoring": "tree", "scoring_tokens": 1},
    {"scoring": "tree", "use_transformers_continuous_batching": True},
    # vLLM
    {"vllm_sync": "adapter", "use_vllm": False},
    {"vllm_server_urls": ["http://localhost:1"], "use_vllm": False},
    {"vllm_server_urls": [], "vllm_sync": "adapter", "use_vllm": True},
    {"vllm_server_urls": ["x"], "vllm_sync": "adapter", "use_vllm": True},
    {"vllm_server_urls": ["http://a", "http://a"], "vllm_sync": "adapter", "use_vllm": True},
    {"vllm_mode": "server", "vllm_sync": "adapter", "use_vllm": True},
    {"vllm_enable_sleep_mode": True, "vllm_sync": "adapter", "use_vllm": True},
    {"vllm_tensor_parallel_size": 2, "vllm_sync": "adapter", "use_vllm": True},
    {"group_generation": "beam", "use_vllm": True},
    {"group_generation": "diverse_beam", "num_beam_groups": 1, "use_vllm": True, "vllm_sync": "adapter"},
    {"vllm_importance_sampling_clip_min": 3.0, "vllm_importance_sampling_clip_max": 2.0},
    {
        "vllm_importance_sampling_mode": "token_truncate",
        "vllm_importance_sampling_clip_min": None,
        "vllm_importance_sampling_clip_max": None,
    },
    # Saving, evaluation, schedule
    {"eval_strategy": "steps", "eval_steps": 1},
    {"eval_on_start": True},
    {"save_strategy": "best"},
    {"load_best_model_at_end": True, "save_strategy": "steps", "eval_strategy": "no"},
    {
        "load_best_model_at_end": True,
        "save_strategy": "steps",
        "save_steps": 3,
        "eval_strategy": "steps",
        "eval_steps": 2,
    },
    {"lr_scheduler_type": "reduce_lr_on_plateau"},
    {"lr_scheduler_kwargs": {"nonsense": 1}},
    {"logging_strategy": "steps", "logging_steps": 0},
    {"fp16": True, "bf16": True},
    {"fp16_full_eval": True, "bf16_full_eval": True},
    {"fp16": True},
    {"dataloader_prefetch_factor": 2, "dataloader_num_workers": 0},
    {"log_completions_hub_repo": "me/it", "log_completions": False},
    {"resume_from_checkpoint": "nowhere"},
    {"max_steps": -1, "num_train_epochs": 0},
    {"warmup_steps": 5, "max_steps": 1},
    {"report_to": ["none", "nonsense"]},
    {"optim": "galore_adamw"},
    {"optim_args": "a=b"},
]


def mixed() -> st.SearchStrategy[dict[str, Any]]:
    """Some fields of ours and of `trl.GRPOConfig` at once, each with a choice, a small number or a wrong value."""
    chosen = {}
    specs = {spec.name: spec for spec in fields(GRPOExtConfig)}
    started = {
        "use_vllm",
        "log_completions_hub_repo",
        "use_transformers_continuous_batching",
        "use_transformers_paged",
    }
    for name, hint in hints().items():
        if name in HOSTS | started | set(NOT_RUN):
            continue
        choices = specs[name].metadata.get("choices")
        parts = [get_origin(part) or part for part in members(hint)]
        values: list[st.SearchStrategy[Any]] = [st.none()] if type(None) in parts else []
        if choices:
            values.append(st.sampled_from(list(choices)))
        else:
            values += [SMALL[part] for part in parts if part in SMALL]
        chosen[name] = st.one_of(values)
    names = st.lists(st.sampled_from(sorted(chosen)), min_size=2, max_size=4, unique=True)
    return names.flatmap(lambda picked: st.fixed_dictionaries({name: chosen[name] for name in picked}))


SMALL: dict[Any, st.SearchStrategy[Any]] = {
    bool: st.booleans(),
    int: st.integers(-1, 6),
    float: st.sampled_from([-1.0, 0.0, 1e-9, 0.1, 0.5, 1.0, 2.0, math.inf, math.nan]),
    str: st.sampled_from(["", "x", "prompt", "\n"]),
    list: st.sampled_from([[], [1.0], [0.5, 0.5], ["x"]]),
    dict: st.sampled_from([{}, {"top_p": 0.9}, {"nonsense": 1}]),
}
