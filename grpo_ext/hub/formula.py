"""The objective of a run in words and symbols, put together from the first sentences of the axes' own docstrings."""

import inspect
import textwrap
from collections.abc import Mapping
from typing import Any

from grpo_ext.config import GRPOExtConfig
from grpo_ext.objective import Objective
from grpo_ext.ops.advantages import BASELINES, SCALES
from grpo_ext.ops.aggregation import AGGREGATIONS
from grpo_ext.ops.kl import KL_ESTIMATORS
from grpo_ext.ops.ratios import RATIO_LEVELS
from grpo_ext.ops.surrogates import SURROGATES

# Preset -> what its paper calls the method, and the paper's number on arXiv; None where no single paper has it
PAPERS: dict[str, tuple[str, str] | None] = {
    "deepseekmath": ("GRPO (DeepSeekMath)", "2402.03300"),
    "deepseekmath_process": ("GRPO with process supervision (DeepSeekMath)", "2402.03300"),
    "dr_grpo": ("Dr. GRPO", "2503.20783"),
    "dapo": ("DAPO", "2503.14476"),
    "gspo": ("GSPO", "2507.18071"),
    "gspo_token": ("GSPO-token", "2507.18071"),
    "cispo": ("CISPO (MiniMax-M1)", "2506.13585"),
    "gmpo": ("GMPO", "2507.20673"),
    "sapo": ("SAPO", "2511.20347"),
    "luspo": ("LUSPO", "2602.05261"),
    "vespo": ("VESPO", "2602.10693"),
    "beam": None,
    "sequence_product": None,
    "reinforce_group": None,
}

# Fields of a config that the formula depends on; the others need not fit the machine that writes the card.
FIELDS = (
    "advantage_baseline",
    "scale_rewards",
    "advantage_eps",
    "loss_type",
    "importance_sampling_level",
    "surrogate",
    "aggregation",
    "ratio_against",
    "kl_estimator",
    "kl_against",
    "kl_in",
    "use_bias_correction_kl",
    "beta",
    "entropy_coef",
    "epsilon",
    "epsilon_high",
    "delta",
    "sapo_temperature_pos",
    "sapo_temperature_neg",
    "vespo_k_pos",
    "vespo_lambda_pos",
    "vespo_k_neg",
    "vespo_lambda_neg",
)
WIDTH = 110


def default_of(field: str) -> Any:
    """The default of a field of `GRPOExtConfig`."""
    return GRPOExtConfig.__dataclass_fields__[field].default


def first_sentence(function: Any) -> str:
    """The first paragraph of a docstring, in one line."""
    text = inspect.getdoc(function) or ""
    return " ".join(text.partition("\n\n")[0].split())


def formula(fields: Mapping[str, Any]) -> str:
    """The advantage, the ratio and the loss, each part with the formula that its row has.

    L = aggregate(surrogate(w, A) + β KL)

    Args:
        fields: fields of a `GRPOExtConfig`; those that the formula does not depend on are left aside.

    Returns:
        Lines of plain text.
    """
    chosen = {name: fields[name] for name in FIELDS if name in fields}
    config = GRPOExtConfig(output_dir="unused", use_cpu=True, bf16=False, report_to="none", **chosen)
    objective = config.objective()
    baseline, scale = config.advantage_baseline or "mean", config.scale_rewards
    in_reward = [f"r ← r − {config.beta:g} KL"] if not objective.kl_in_loss else []
    lines = [
        *in_reward,
        "A = (v − b) / s",
        *_part("baseline b", baseline, BASELINES[baseline]),
        *_part("scale s", scale, SCALES[scale]),
        *([f"        ε = {config.advantage_eps:g}"] if scale != "none" else []),
        *_ratio(objective),
        f"L = {_loss(objective, config.beta)}",
        *_part("surrogate", objective.surrogate, SURROGATES[objective.surrogate].loss),
        *_constants(objective),
        *_part("aggregate", objective.aggregation, AGGREGATIONS[objective.aggregation]),
    ]
    if config.beta:
        lines += _part(
            f"KL to π_{objective.kl_against}", objective.kl_estimator, KL_ESTIMATORS[objective.kl_estimator]
        )
    return "\n".join(lines)


def _ratio(objective: Objective) -> list[str]:
    kind = SURROGATES[objective.surrogate].ratio
    if kind == "none":
        return []
    # A surrogate that forms its own starts from the tokens'
    level = objective.ratio_level if kind == "level" else "token"
    return [f"w = π / π_{objective.ratio_against}", *_part("ratio w", level, RATIO_LEVELS[level])]


def _loss(objective: Objective, beta: float) -> str:
    entropy = f" − {objective.entropy_coef:g} H" if objective.entropy_coef else ""
    kl = f" + {beta:g} KL" if beta and objective.kl_in_loss else ""
    return f"aggregate(surrogate(w, A){kl}){entropy}"


def _constants(objective: Objective) -> list[str]:
    constants = SURROGATES[objective.surrogate].constants
    values = {sign: getattr(objective.clipping, name) for sign, name in constants.items()}
    stated = ", ".join(f"{sign} = {value}" for sign, value in values.items() if value is not None)
    return [f"        {stated}"] if stated else []


def _part(name: str, row: str, function: Any) -> list[str]:
    text = f"{name}, {row}: {first_sentence(function)}"
    return textwrap.wrap(text, WIDTH, initial_indent="    ", subsequent_indent="        ", break_long_words=False)
