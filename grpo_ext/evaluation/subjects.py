"""The models of an evaluation: a folder or hub name, of a whole model or of an adapter over its base."""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
from peft import PeftModel

from grpo_ext.faults import first_line
from grpo_ext.models import load_policy, load_tokenizer, resolve_model
from grpo_ext.models.policy import agree_on_tokens
from grpo_ext.trust import refuse_pickles

ADAPTER = "adapter_config.json"
# Files that decide what a model says: weights, configuration, tokenizer, chat template
FILES = ("*.safetensors", "*.bin", "*.json", "*.model", "*.jinja")
PIECE = 1 << 20


@dataclass(frozen=True)
class Subject:
    """A model to evaluate.

    Attributes:
        name: as the user wrote it.
        base: folder or hub name of the weights, or of those under the adapter.
        adapter: folder of the adapter, or None.
        rank: of the adapter, 0 without one.
    """

    name: str
    base: str
    adapter: str | None = None
    rank: int = 0

    @property
    def label(self) -> str:
        """The name as one part of a path."""
        return re.sub(r"[^\w.-]+", "-", self.name).strip("-.")[-100:] or "model"

    def fingerprint(self) -> str:
        """Digest of size and pieces of each file that decides what the model says; a hub name stands for itself."""
        digest = hashlib.blake2b(digest_size=8)
        for place in filter(None, (self.base, self.adapter)):
            folder = Path(place)
            digest.update(b"" if folder.is_dir() else place.encode())
            for file in sorted({path for pattern in FILES for path in folder.glob(pattern) if path.is_file()}):
                _add(digest, file)
        return digest.hexdigest()


def _add(digest: Any, file: Path) -> None:
    size = file.stat().st_size
    digest.update(f"{file.name} {size}".encode())
    with file.open("rb") as content:
        for start in (0, size // 2, max(0, size - PIECE)):
            content.seek(start)
            digest.update(content.read(PIECE))


def subject_named(name: str, base_model: str | None = None) -> Subject:
    """Find a model, or an adapter and the base that its config names.

    Args:
        name: folder or hub name.
        base_model: base of adapters in the place of what their configs name.

    Returns:
        The model.

    Raises:
        OSError: it is not found, or its base is not.
        ValueError: the adapter's config names no base.
    """
    folder = _adapter_folder(name)
    if folder is None:
        path = resolve_model(name)
        refuse_pickles(path, "model")
        return Subject(name, path)
    refuse_pickles(folder, "model")
    try:
        config = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{folder / ADAPTER} is not JSON ({error}).") from error
    base = base_model or config.get("base_model_name_or_path")
    if not base:
        raise ValueError(f"the adapter {name!r} does not say which model it is for; name it with `base_model`.")
    try:
        return Subject(name, resolve_model(base), str(folder), int(config.get("r") or 0))
    except OSError as error:
        raise OSError(f"the adapter {name!r} needs its base, but {error} `base_model` names another place.") from error


def _adapter_folder(name: str) -> Path | None:
    """Folder of an adapter, downloaded where the name is one on the hub; None for a whole model."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / ADAPTER).is_file() and not (folder / "config.json").is_file():
            raise OSError(f"the folder {name!r} has neither a config.json nor an {ADAPTER}; name a model's folder.")
        return folder if (folder / ADAPTER).is_file() else None
    if name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise OSError(f"the folder {name!r} does not exist; name an existing one, or a name on the hub.")
    cached = try_to_load_from_cache(name, ADAPTER)
    if isinstance(cached, str):
        return Path(cached).parent
    if isinstance(try_to_load_from_cache(name, "config.json"), str):
        return None
    if resolve_model(name) != name:
        return None
    try:
        hf_hub_download(name, ADAPTER)
    except EntryNotFoundError:
        return None
    except HfHubHTTPError as error:
        raise OSError(f"the hub does not give the model {name!r} ({first_line(error)}); is the name right?") from error
    return Path(snapshot_download(name, allow_patterns=["adapter_*", "*.json"]))


def distinct(subjects: Sequence[Subject]) -> None:
    """See that each model has a folder of its own.

    Args:
        subjects: models.

    Raises:
        ValueError: two have the same one.
    """
    for place, subject in enumerate(subjects):
        for other in subjects[:place]:
            if other.label == subject.label:
                raise ValueError(
                    f"the models {other.name!r} and {subject.name!r} would share the folder {subject.label!r}; name "
                    "each once, or evaluate them into different folders with `output_dir`."
                )


def load(subject: Subject, dtype: str, trust_remote_code: bool = False) -> tuple[Any, Any]:
    """The model and its tokenizer, ready to generate.

    The tokenizer of an adapter's folder comes before its base's.

    Args:
        subject: which.
        dtype: a key of `grpo_ext.models.policy.DTYPES`.
        trust_remote_code: whether code that comes with the model may run.

    Returns:
        Model in evaluation mode and tokenizer.

    Raises:
        OSError: something is missing.
        ValueError: the adapter does not fit its base.
    """
    model, tokenizer = load_policy(subject.base, dtype=dtype, lora_r=0, trust_remote_code=trust_remote_code)
    if subject.adapter is None:
        return model.eval(), tokenizer
    if (place := tokenizer_place(subject)) != subject.base:
        tokenizer = load_tokenizer(place, trust_remote_code=trust_remote_code)
        agree_on_tokens(model, tokenizer)
    try:
        adapted = PeftModel.from_pretrained(model, subject.adapter)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"the adapter {subject.name!r} does not fit the model {subject.base!r}: {reason}") from error
    return adapted.eval(), tokenizer


def tokenizer_place(subject: Subject) -> str:
    """Where the tokenizer is.

    Args:
        subject: which.
    """
    if subject.adapter is not None and os.path.isfile(os.path.join(subject.adapter, "tokenizer_config.json")):
        return subject.adapter
    return subject.base
