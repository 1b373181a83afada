"""Names and conditions of TRL's and transformers' fields as tables, for what depends on more than one number."""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from typing import Any

from accelerate.utils import DynamoBackend
from peft import PeftModel
from torch._inductor import list_mode_options
from transformers import SchedulerType
from transformers.debug_utils import DebugOption
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION
from transformers.trainer_pt_utils import AcceleratorConfig

from grpo_ext.checks.limits import COUNT, LIMITS, Limit, check_numbers
from grpo_ext.checks.types import brief
from grpo_ext.checks.values import is_path
from grpo_ext.ops.surrogates import SURROGATES

DYNAMO = DynamoBackend.__members__
DEBUG_OPTIONS = {option.value for option in DebugOption}
PADDING = re.compile(r"auto|[1-9]\d*|none|null", re.IGNORECASE)
ACCELERATOR_KEYS = {spec.name for spec in fields(AcceleratorConfig)}

# Names that the hosts check in the middle of a run, or not at all
NAMES: dict[str, tuple[Any, ...]] = {
    "include_num_input_tokens_seen": ("all", "non_padding", "no", True, False),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
    "vllm_importance_sampling_mode": ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask"),
    "vllm_mode": ("colocate", "server"),
    "vllm_model_impl": ("vllm", "transformers", "auto"),
}


def _in_use(config: Any, strategy: str) -> bool:
    return getattr(config, strategy) == "steps"


def _reports(config: Any) -> set[Any]:
    found = config.report_to if isinstance(config.report_to, list) else [config.report_to]
    return set(found) - {"all", "none", *INTEGRATION_TO_CALLBACK}


def _scheduler_takes(config: Any) -> set[str]:
    """Keys that the schedule may be given; those that are there where it takes any."""
    parameters = inspect.signature(TYPE_TO_SCHEDULER_FUNCTION[SchedulerType(config.lr_scheduler_type)]).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return set(config.lr_scheduler_kwargs)
    return set(parameters) - {"optimizer", "num_warmup_steps", "num_training_steps"}


def _number(limit: Limit) -> Limit:
    words, holds = limit
    return words, lambda value: isinstance(value, int | float) and holds(value)


def _is_token(value: Any) -> bool:
    return (isinstance(value, int) and value >= 0) or (isinstance(value, list) and all(map(_is_token, value)))


# Key of `generation_kwargs` -> what its value must be; transformers takes it as it is and fails while it generates
GENERATION: dict[str, Limit] = {
    **{name: _number(LIMITS[name]) for name in ("temperature", "top_p", "min_p", "repetition_penalty")},
    **dict.fromkeys(("max_new_tokens", "max_length", "min_new_tokens"), _number(COUNT)),
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), ("a token's number", _is_token)),
    "stop_strings": ("left out, for TRL hands no tokenizer to `generate`; use eos_token_id", lambda value: False),
}


def _generation_fault(given: Any) -> str:
    """What a key of `generation_kwargs` must be and is not, as the end of a sentence, or nothing."""
    for name, value in given.items() if isinstance(given, Mapping) else ():
        words, holds = GENERATION.get(name, ("", lambda value: True))
        if value is not None and not holds(value):
            return f"{name} is {words}"
    return ""


# Field -> (whether it is wrong, what it must be)
FAULTS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], str]]] = {
    "debug": (
        lambda c: isinstance(c.debug, str) and set(c.debug.split()) - DEBUG_OPTIONS,
        lambda c: f"words among: {', '.join(sorted(DEBUG_OPTIONS))}",
    ),
    "entropy_coef_min": (
        lambda c: c.use_adaptive_entropy and c.entropy_coef_min > c.entropy_coef_max,
        lambda c: f"at most `entropy_coef_max` {c.entropy_coef_max}",
    ),
    "generation_kwargs": (
        lambda c: not c.use_vllm and _generation_fault(c.generation_kwargs),
        lambda c: f"a mapping whose {_generation_fault(c.generation_kwargs)}",
    ),
    "logging_steps": (
        lambda c: _in_use(c, "logging_strategy") and c.logging_steps == 0,
        lambda c: "above 0, or set `logging_strategy` to 'no'",
    ),
    "accelerator_config": (
        lambda c: isinstance(c.accelerator_config, Mapping) and set(c.accelerator_config) - ACCELERATOR_KEYS,
        lambda c: f"a mapping with keys among: {', '.join(sorted(ACCELERATOR_KEYS))}",
    ),
    "lr_scheduler_kwargs": (
        lambda c: isinstance(c.lr_scheduler_kwargs, Mapping) and set(c.lr_scheduler_kwargs) - _scheduler_takes(c),
        lambda c: f"a mapping with keys among: {', '.join(sorted(_scheduler_takes(c))) or 'none'}",
    ),
    "output_dir": (
        lambda c: c.output_dir is not None and not is_path(str(c.output_dir)),
        lambda c: "the name of a folder",
    ),
    "optim_args": (
        lambda c: c.optim_args and any(part.count("=") != 1 for part in c.optim_args.split(",")),
        lambda c: "written as key=value, with commas between them",
    ),
    "pad_to_multiple_of": (
        lambda c: isinstance(c.pad_to_multiple_of, str) and not PADDING.fullmatch(c.pad_to_multiple_of),
        lambda c: "a whole number, 'auto' or 'none'",
    ),
    "report_to": (_reports, lambda c: f"one of: all, none, {', '.join(INTEGRATION_TO_CALLBACK)}"),
    "top_k": (
        lambda c: c.top_k == -1 and not c.use_vllm,
        lambda c: "0 for none, or at least 1; -1 is how vLLM spells it",
    ),
    "torch_compile_backend": (
        lambda c: c.torch_compile_backend is not None and c.torch_compile_backend.upper() not in DYNAMO,
        lambda c: f"one of: {', '.join(DYNAMO).lower()}",
    ),
    "torch_compile_mode": (
        lambda c: c.torch_compile_mode is not None and c.torch_compile_mode not in list_mode_options(),
        lambda c: f"one of: {', '.join(list_mode_options())}",
    ),
}


def check_limits(config: Any) -> None:
    """Check numbers and names of a config whose fields have the annotated types.

    Args:
        config: a `trl.GRPOConfig`.

    Raises:
        ValueError: in one sentence.
    """
    check_numbers(config)
    for sentence in _faults(config):
        raise ValueError(sentence)


def _faults(config: Any) -> Iterator[str]:
    for name, choices in NAMES.items():
        value = getattr(config, name)
        if value not in choices:
            yield f"`{name}` is {brief(value)}; it must be one of: {', '.join(map(str, choices))}."
    for name, (is_wrong, words) in FAULTS.items():
        if is_wrong(config):
            yield f"`{name}` is {brief(getattr(config, name))}; it must be {words(config)}."


def _level_acts(config: Any) -> bool:
    """Whether the level of the ratio is read; under TRL's own names it is TRL's to say so."""
    objective = config.objective()
    corrects = config.beta != 0.0 and objective.kl_estimator == "k3_corrected"
    return config.surrogate is None or SURROGATES[config.surrogate].ratio == "level" or corrects


def _surrogates(*ratios: str) -> str:
    named = [repr(name) for name, row in SURROGATES.items() if row.ratio in ratios]
    return f"`surrogate` {', '.join(named[:-1])} or {named[-1]}"


# Field that acts in company alone -> (whether a config gives it that, the words for it)
COMPANY: dict[str, tuple[Callable[[Any], bool], str]] = {
    "kl_target": (lambda c: c.kl_controller not in (None, "fixed"), "`kl_controller` 'ziegler' or 'ppo'"),
    **dict.fromkeys(
        ("num_beam_groups", "diversity_penalty"),
        (lambda c: c.group_generation == "diverse_beam", "`group_generation` 'diverse_beam'"),
    ),
    "length_penalty": (
        lambda c: c.group_generation not in ("sampling", "stochastic_beam"),
        "`group_generation` 'beam', 'diverse_beam' or 'beam+sampling'",
    ),
    "importance_sampling_level": (_level_acts, _surrogates("level")),
    "ratio_against": (lambda c: SURROGATES[c.objective().surrogate].ratio != "none", _surrogates("level", "own")),
    "resampling_rounds": (lambda c: c.resampling is not None, "`resampling`"),
    **dict.fromkeys(
        ("process_rollouts", "process_rollout_model", "process_rollout_check", "process_rollout_tokens"),
        (
            lambda c: c.process_reward in ("rollouts_soft", "rollouts_hard"),
            "`process_reward` 'rollouts_soft' or 'rollouts_hard'",
        ),
    ),
    "delta": (
        lambda c: c.surrogate is None or "delta" in SURROGATES[c.surrogate].constants.values(),
        "`surrogate` 'clip'",
    ),
    "kl_against": (lambda c: c.beta != 0.0, "`beta` above 0"),
    "vllm_request_timeout": (lambda c: bool(c.vllm_server_urls), "`vllm_server_urls`"),
    **dict.fromkeys(
        ("scoring_attention", "scoring_tokens"), (lambda c: c.scoring != "padded", "`scoring` 'auto' or 'tree'")
    ),
}


def check_company(config: Any) -> None:
    """Refuse fields that were set and would act on nothing.

    Args:
        config: a `GRPOExtConfig`.

    Raises:
        ValueError: in one sentence.
    """
    defaults = {spec.name: spec.default for spec in fields(config)}
    for name, (has_company, words) in COMPANY.items():
        value = getattr(config, name)
        if value != defaults[name] and not has_company(config):
            kept = "unset" if defaults[name] is None else f"at {defaults[name]!r}"
            raise ValueError(
                f"`{name}` is {brief(value)}, but it acts only with {words}; set that, or leave it {kept}."
            )


# What is wrong with a config and what the trainer is given beside it, and the sentence about it
Given = tuple[Callable[[Any, Any, Mapping[str, Any]], bool], Callable[[Any], str]]
GIVEN: tuple[Given, ...] = (
    (
        lambda config, model, given: (
            config.cast_lm_head_to_fp32
            and _has_adapter(model, given)
            and not isinstance(model, str)
            and model.config.tie_word_embeddings
        ),
        lambda config: (
            "`cast_lm_head_to_fp32` is True, but TRL cannot cast a head that shares its weights with the embeddings "
            "of a policy with an adapter; leave it off, or train without an adapter."
        ),
    ),
    (
        lambda config, model, given: config.eval_on_start and given.get("eval_dataset") is None,
        lambda config: "`eval_on_start` is True, but there is no `eval_dataset`; give the trainer one.",
    ),
    (
        lambda config, model, given: config.sync_ref_model and _has_adapter(model, given),
        lambda config: (
            "`sync_ref_model` is True, but the reference of a policy with an adapter is its base, which cannot be "
            "synchronised; leave it off, or set `num_rounds` and `steps_per_round`, which renew the reference."
        ),
    ),
)


def check_given(config: Any, model: Any, given: Mapping[str, Any]) -> None:
    """Check a config against what the trainer is given beside it.

    Args:
        config: a `trl.GRPOConfig`.
        model: policy, or its name.
        given: the trainer's other arguments by name.

    Raises:
        ValueError: in one sentence.
    """
    for is_wrong, sentence in GIVEN:
        if is_wrong(config, model, given):
            raise ValueError(sentence(config))


def _has_adapter(model: Any, given: Mapping[str, Any]) -> bool:
    return isinstance(model, PeftModel) or given.get("peft_config") is not None
