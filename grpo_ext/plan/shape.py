"""The sizes of a model, from a config.json or a published shape; nothing is downloaded unasked."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, try_to_load_from_cache

from grpo_ext.bench.shapes import SHAPES
from grpo_ext.models import smollm2

# Files that say what a model and its tokenizer are like; none holds weights.
FILES = ("config.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder with gated feed-forward layers.

    Attributes:
        name: for messages.
        hidden: width of the residual stream.
        layers: number of layers.
        query: width of all query heads.
        keys: width of all key heads, which is that of all value heads.
        feed_forward: inner width.
        vocabulary: rows of the embedding.
        tied: whether the head is the embedding.
        window: longest sequence, or None where it is not known.
        pad_is_end: whether the tokenizer pads with its end token, or None where it is not known.
    """

    name: str
    hidden: int
    layers: int
    query: int
    keys: int
    feed_forward: int
    vocabulary: int
    tied: bool = True
    window: int | None = None
    pad_is_end: bool | None = None

    @property
    def linear(self) -> int:
        """Weights of the linear layers, without embedding and head."""
        attention = 2 * self.hidden * self.query + 2 * self.hidden * self.keys
        return self.layers * (attention + 3 * self.hidden * self.feed_forward)

    @property
    def other(self) -> int:
        """Weights of embedding, head and norms."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2) + (2 * self.layers + 1) * self.hidden

    def adapter(self, rank: int) -> int:
        """Weights of a LoRA adapter on every linear layer: r (inputs + outputs) each.

        Args:
            rank: r.
        """
        ends = 4 * self.hidden + 2 * self.query + 2 * self.keys + 3 * (self.hidden + self.feed_forward)
        return self.layers * rank * ends


def shape_of(config: dict[str, Any], name: str, tokenizer: dict[str, Any] | None = None) -> Shape:
    """Read the sizes off the content of a config.json.

    Args:
        config: its content.
        name: of the model.
        tokenizer: content of tokenizer_config.json, or None.

    Returns:
        The shape.

    Raises:
        ValueError: a size is missing.
    """
    config = {**config, **config.get("text_config", {})}
    try:
        hidden, heads = config["hidden_size"], config["num_attention_heads"]
        width = config.get("head_dim") or hidden // heads
        return Shape(
            name=name,
            hidden=hidden,
            layers=config["num_hidden_layers"],
            query=heads * width,
            keys=(config.get("num_key_value_heads") or heads) * width,
            feed_forward=config["intermediate_size"],
            vocabulary=config["vocab_size"],
            tied=bool(config.get("tie_word_embeddings", name in SHAPES)),
            window=config.get("max_position_embeddings"),
            pad_is_end=_pads_with_end(tokenizer),
        )
    except KeyError as error:
        raise ValueError(f"The config.json of {name!r} has no {error}, which a memory estimate needs.") from error


def _pads_with_end(tokenizer: dict[str, Any] | None) -> bool | None:
    if tokenizer is None:
        return None
    # A token is a string or the fields of one
    pad, end = (
        value.get("content") if isinstance(value, dict) else value
        for value in (tokenizer.get("pad_token"), tokenizer.get("eos_token"))
    )
    return pad == end and end is not None


def find_shape(model: str, from_hub: bool = False) -> Shape:
    """Sizes of a model by its folder, its name in the hub's cache, a row of `SHAPES`, or, if allowed, the hub.

    Args:
        model: folder or name.
        from_hub: whether its config.json may be fetched.

    Returns:
        The shape.

    Raises:
        OSError: it is found nowhere.
        ValueError: its config.json lacks a size.
    """
    files = _local_files(model) or (_hub_files(model) if from_hub else {})
    if "config.json" in files:
        config, tokenizer = (_read(files.get(name)) for name in FILES)
        return shape_of(config or {}, model, tokenizer)
    row = model.rstrip("/").rsplit("/", 1)[-1].lower().removesuffix("-instruct")
    if row in SHAPES:
        return shape_of(SHAPES[row], row)
    raise OSError(
        f"The sizes of {model!r} are not known here; give a folder with a config.json, one of {', '.join(SHAPES)}, or "
        "--from_hub to fetch its config.json."
    )


def _local_files(model: str) -> dict[str, Path]:
    folders = [Path(model).expanduser(), *([smollm2.cache_folder()] if model == smollm2.NAME else [])]
    for folder in folders:
        if (folder / FILES[0]).is_file():
            return {name: folder / name for name in FILES if (folder / name).is_file()}
    if model.count("/") > 1 or model.startswith((".", "/", "~")):
        return {}
    cached = {name: try_to_load_from_cache(model, name) for name in FILES}
    return {name: Path(path) for name, path in cached.items() if isinstance(path, str)}


def _hub_files(model: str) -> dict[str, Path]:
    return {name: Path(hf_hub_download(model, name)) for name in FILES}


def _read(path: Path | None) -> dict[str, Any] | None:
    return None if path is None else json.loads(path.read_text(encoding="utf-8"))
