"""What the rewards from classifiers share: safe loading, one pad token, chunks of rows of about the same length."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, BitsAndBytesConfig

from grpo_ext.trust import opened, refuse_pickles

Row = TypeVar("Row")

# Field -> the recipe that trains such a model
RECIPES = {"reward_model": "reward_model", "process_reward_model": "process_reward"}

# Heads that stay in 16 or 32 bit when the weights below them are in 8 or 4: a score is one number
HEADS = ["score", "classifier", "classification_head", "lm_head"]


def chunks_by_length(rows: Sequence[Row], size: int, length: Callable[[Row], int]) -> list[list[Row]]:
    """Rows in chunks, those of about the same length together, the shortest first.

    Args:
        rows: anything with a length.
        size: rows of a chunk at most.
        length: of a row.

    Returns:
        The chunks.
    """
    ordered = sorted(rows, key=length)
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def padded(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> dict[str, Tensor]:
    """Rows as one batch, padded on the right.

    Args:
        rows: token ids.
        pad: id of the pad token.
        device: where the batch goes.

    Returns:
        `input_ids` and `attention_mask`, (B, L).
    """
    width = max(map(len, rows))
    ids = [[*row, *[pad] * (width - len(row))] for row in rows]
    mask = [[1] * len(row) + [0] * (width - len(row)) for row in rows]
    return {"input_ids": torch.tensor(ids, device=device), "attention_mask": torch.tensor(mask, device=device)}


def longest_row(model: Any, tokenizer: Any) -> int | None:
    """Tokens that a model reads at most, as far as its config or its tokenizer says."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    # Tokenizers that know no limit say 10^30
    known = [limit for limit in (positions, tokenizer.model_max_length) if limit and limit < 10**9]
    return min(known, default=None)


def agree_on_padding(model: Any, tokenizer: Any) -> None:
    """Pad on the right, with the token by which the model finds the end of a row.

    A sequence classifier reads the last token that is not its config's pad token, so the config's comes first, then
    the tokenizer's, then the end token.
    """
    config = model.config.get_text_config()
    known = (config.pad_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    pad = next(token for token in known if token is not None)
    tokenizer.padding_side = "right"
    tokenizer.pad_token_id = config.pad_token_id = model.config.pad_token_id = pad


def _quantised(in_8bit: bool, dtype: torch.dtype | str) -> BitsAndBytesConfig:
    """How bitsandbytes holds weights in 8 bit, or else in 4, and computes in a type, "auto" for bfloat16."""
    return BitsAndBytesConfig(
        load_in_8bit=in_8bit,
        load_in_4bit=not in_8bit,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if dtype == "auto" else dtype,
        llm_int8_skip_modules=HEADS,
    )


def load_classifier(
    name: str,
    kinds: Mapping[str, Any],
    field: str,
    device: torch.device | str = "cpu",
    dtype: str = "auto",
    load_in_8bit: bool = False,
    load_in_4bit: bool = False,
) -> tuple[Any, Any]:
    """Load a classifier and its tokenizer without running any code or pickle that comes with them.

    Args:
        name: folder or hub name.
        kinds: end of the architecture's name to the class that loads it.
        field: a key of `RECIPES`, by which the name is called in a message.
        device: where to put it.
        dtype: torch's name of its type, or "auto" for the one it was saved in.
        load_in_8bit: hold the weights in 8 bit (LLM.int8, 2208.07339) through bitsandbytes.
        load_in_4bit: hold the weights in 4-bit NormalFloat (QLoRA, 2305.14314) through bitsandbytes.

    Returns:
        The model in evaluation mode and the tokenizer, agreed on right padding.

    Raises:
        OSError: there is no such model.
        ValueError: it is no classifier, it has no safetensors, or both 8 and 4 bit are asked for.
    """
    if load_in_8bit and load_in_4bit:
        raise ValueError(f"`{field}` {name!r} cannot be loaded in 8 bit and in 4 bit; choose one of the two.")
    if dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise ValueError(f"`dtype` is {dtype!r}; it must be auto, bfloat16, float16 or float32.")
    refuse_pickles(name, field)
    names = opened(AutoConfig, name, field, trust_remote_code=None).architectures or ["a bare configuration"]
    auto = next((auto for ending, auto in kinds.items() if names[0].endswith(ending)), None)
    if auto is None:
        wanted = " or ".join(ending.removeprefix("For").removesuffix("Classification").lower() for ending in kinds)
        raise ValueError(
            f"`{field}` {name!r} is a {names[0]}; it must be a {wanted} classifier, such as "
            f"`python -m grpo_ext.recipes.{RECIPES[field]}` makes."
        )
    options: dict[str, Any] = {"dtype": dtype if dtype == "auto" else getattr(torch, dtype)}
    quantised = load_in_8bit or load_in_4bit
    if quantised:
        options |= {"device_map": {"": device}, "quantization_config": _quantised(load_in_8bit, options["dtype"])}
    model = opened(auto, name, field, trust_remote_code=None, **options)
    if not quantised:
        model = model.to(device)
    tokenizer = opened(AutoTokenizer, name, field, trust_remote_code=None)
    agree_on_padding(model, tokenizer)
    return model.eval(), tokenizer
