"""A finished run as the hub's room sees it: its weights, its summary, and what its base model is called there."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from grpo_ext.models import smollm2

# Keys of a base's card that say under which licence it is
LICENSE_KEYS = ("license", "license_name", "license_link")
# Formats that a recipe saves in, each in a folder of its name, the smallest first -> what is uploaded. GGUF is not.
FORMATS = {"adapter": "adapter", "model": "model", "merged_16bit": "model"}
# What architectures that generate text end with
GENERATES = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
CACHED = re.compile(r"models--(?P<owner>.+?)--(?P<name>[^/\\]+)")


@dataclass(frozen=True)
class SharedRun:
    """What a run folder holds that is worth sharing.

    Attributes:
        folder: the run's `output_dir`.
        weights: folder of the weights and the tokenizer.
        summary: content of `summary.json`.
        base: the base model's name on the hub, or None for a local model.
        title: the base's name for people, the last part of a local folder's path.
        license: what the base's own card says, by `LICENSE_KEYS`; empty where there is none on this machine.
    """

    folder: Path
    weights: Path
    summary: dict[str, Any]
    base: str | None
    title: str
    license: dict[str, str]

    @property
    def kind(self) -> str:
        """ "adapter" or "model"."""
        return FORMATS[self.weights.name]

    @property
    def recipe(self) -> dict[str, Any]:
        """The recipe's arguments."""
        return self.summary.get("recipe") or {}

    @property
    def config(self) -> dict[str, Any] | None:
        """The fields of the trainer's config that are not its defaults, None where the run did not write them."""
        return self.summary.get("config")

    @property
    def rank(self) -> int | None:
        """Rank of the adapter."""
        if self.kind != "adapter":
            return None
        return int(json.loads((self.weights / "adapter_config.json").read_text(encoding="utf-8"))["r"])


def read_run(folder: str | Path, base_model: str | None = None) -> SharedRun:
    """Read the folder of a finished run.

    Args:
        folder: the run's `output_dir`.
        base_model: the base's name on the hub, where the run was started from a local folder.

    Returns:
        What it holds.

    Raises:
        OSError: there is no such folder, or no finished run in it.
        ValueError: `base_model` is no name on the hub, or it is not a policy that was trained.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise OSError(f"There is no run folder {str(folder)!r}; give the `output_dir` of a finished run.")
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OSError(f"{str(folder)!r} has no readable summary.json, which a recipe writes at its end.") from error
    if not summary.get("dataset"):
        raise ValueError(
            f"{str(folder)!r} is not the run of a policy, its summary.json names no `dataset`, and a card would say "
            "what is not so; upload such a model with `hf upload`."
        )
    weights = _weights(folder, summary)
    _refuse_others(weights)
    typed = str(summary.get("model") or "")
    if base_model is not None:
        check_repo_id(base_model, "base_model")
    local = _base_of(weights) or typed
    base = base_model or hub_name(local)
    return SharedRun(
        folder, weights, summary, base, base or Path(local).name or "a local model", _license(base, local)
    )


def check_repo_id(name: str, field: str) -> None:
    """Raise in one sentence where a name cannot be one of the hub's.

    Args:
        name: "name" or "owner/name".
        field: what to call it in the message.

    Raises:
        ValueError: it is no such name.
    """
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(
            f"`{field}` is {name!r}, which the hub does not take; write 'name' or 'owner/name' with letters, digits, "
            "'-', '_' and '.', without '--' or '..'."
        ) from error


def hub_name(name_or_path: str) -> str | None:
    """The hub's name of a model: the words themselves, or what the hub's cache folder is called.

    Args:
        name_or_path: what the user gave as model.

    Returns:
        The name, or None for a folder that only this machine knows.
    """
    cached = CACHED.search(name_or_path)
    if cached is not None:
        return f"{cached['owner']}/{cached['name']}"
    try:
        validate_repo_id(name_or_path)
    except HFValidationError:
        return None
    return None if Path(name_or_path).is_dir() else name_or_path


def _weights(folder: Path, summary: dict[str, Any]) -> Path:
    """The folder that is uploaded: of the formats that this run saved, as there may be older ones of another run."""
    for key, why in (("interrupted", "was interrupted"), ("stopped_by", "was stopped by a finding")):
        if summary.get(key):
            # Weights that lie there are an older run's
            raise OSError(f"The run in {str(folder)!r} {why} and saved nothing to upload; resume it to its end.")
    saved = (summary.get("recipe") or {}).get("save_format") or FORMATS
    found = next((folder / name for name in FORMATS if name in saved and (folder / name).is_dir()), None)
    if found is None:
        raise OSError(
            f"{str(folder)!r} has none of {', '.join(f'{name}/' for name in FORMATS)} to upload; save_format decides "
            "what a run leaves there."
        )
    return found


def _refuse_others(weights: Path) -> None:
    """See that a whole model generates text, as its card says."""
    path = weights / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for name in config.get("architectures") or ():
        if not name.endswith(GENERATES):
            raise ValueError(
                f"{str(weights)!r} holds a {name}, which generates no text, and the card of a policy would not be "
                "true of it; upload such a model with `hf upload`."
            )


def _base_of(weights: Path) -> str | None:
    """What an adapter was trained on, which need not be what the run was started with: stages may lie between."""
    path = weights / "adapter_config.json"
    if not path.is_file():
        return None
    named = json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path")
    return smollm2.NAME if named == str(smollm2.cache_folder()) else named


def _license(base: str | None, local: str) -> dict[str, str]:
    """The licence fields of the base's card, from its folder or the hub's cache."""
    beside = Path(local).expanduser() / "README.md"
    found = try_to_load_from_cache(base, "README.md") if base is not None else None
    path = beside if beside.is_file() else Path(found) if isinstance(found, str) else None
    if path is None:
        return {}
    try:
        data = ModelCard.load(path).data
    except (OSError, ValueError, yaml.YAMLError):  # a card that nobody can read says nothing
        return {}
    return {key: str(value) for key in LICENSE_KEYS if (value := data.get(key)) is not None}
