"""The detectors of a run by name, and the settings that change or switch them off."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from difflib import get_close_matches
from typing import Any

from grpo_ext.health.cheating import LengthHacking, PartsApart, TruncatedCompletions
from grpo_ext.health.finding import Detector
from grpo_ext.health.learning import DeadGroups, EntropyCollapse, RewardPlateau
from grpo_ext.health.stability import ClipSaturation, GradientSpikes, KLDrift, SamplerMismatch

DETECTORS: dict[str, Detector] = {
    "dead_groups": DeadGroups(),
    "reward_plateau": RewardPlateau(),
    "kl_drift": KLDrift(),
    "entropy_collapse": EntropyCollapse(),
    "clip_saturation": ClipSaturation(),
    "length_hacking": LengthHacking(),
    "truncated_completions": TruncatedCompletions(),
    "parts_apart": PartsApart(),
    "gradient_spikes": GradientSpikes(),
    "sampler_mismatch": SamplerMismatch(),
}


def thresholds(detector: Any) -> dict[str, int | float]:
    """Fields of a detector with their values."""
    return {spec.name: getattr(detector, spec.name) for spec in fields(detector)}


def known(name: str, field: str, names: Mapping[str, Any] = DETECTORS, kind: str = "a detector") -> str:
    """A name if it is one of several.

    Args:
        name: what was written.
        field: where it was written, for the error.
        names: what there is.
        kind: what the names are, for the error.

    Returns:
        The name.

    Raises:
        ValueError: it is none of them.
    """
    if name in names:
        return name
    near = get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(names)}."
    raise ValueError(f"`{field}` holds {name!r}, which is not {kind}; {hint}")


def chosen(settings: Sequence[str]) -> dict[str, Detector]:
    """The detectors after settings such as `kl_drift.limit=0.8` and `reward_plateau=off`.

    Args:
        settings: `NAME.THRESHOLD=NUMBER` or `NAME=off` each.

    Returns:
        From name to detector, in the order of `DETECTORS`.

    Raises:
        ValueError: an unknown detector or threshold, or a value that is no positive number.
    """
    found: dict[str, Any] = dict(DETECTORS)
    off = set()
    for setting in settings:
        target, _, value = setting.partition("=")
        name, _, threshold = target.strip().partition(".")
        known(name, "health")
        if not threshold and value.strip() in ("off", "False", "false"):
            off.add(name)
            continue
        here = thresholds(found[name])
        known(threshold, "health", here, f"a threshold of {name}")
        found[name] = replace(found[name], **{threshold: _number(setting, value, type(here[threshold]))})
    return {name: detector for name, detector in found.items() if name not in off}


def _number(setting: str, text: str, kind: type) -> int | float:
    try:
        value = kind(text)
    except ValueError:
        value = kind(0)
    if not 0 < value < float("inf"):
        whole = "whole " if kind is int else ""
        raise ValueError(f"`health` holds {setting!r}; it must be a positive {whole}number after the equals sign.")
    return value
