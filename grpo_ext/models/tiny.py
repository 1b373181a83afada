"""A random policy of a few thousand weights with a character tokenizer, made in memory: for tests and dry runs."""

from __future__ import annotations

import string

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

SPECIAL_TOKENS = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
CHARACTERS = string.digits + string.ascii_letters + string.punctuation + " \n"

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ bos_token + message['role'] + '\\n' + message['content'] + eos_token + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ bos_token + 'assistant\\n' }}{% endif %}"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token for every printable ASCII character and the newline, and four special tokens.

    Returns:
        A tokenizer of 100 tokens that pads on the left with `<pad>` (id 0), ends with `<eos>` (id 1) and has a chat
        template.
    """
    tokens = [*SPECIAL_TOKENS.values(), *CHARACTERS]
    core = Tokenizer(WordLevel({token: index for index, token in enumerate(tokens)}, SPECIAL_TOKENS["unk_token"]))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=512,
        **SPECIAL_TOKENS,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def tiny_policy(
    seed: int = 0,
    *,
    hidden_size: int = 32,
    num_hidden_layers: int = 2,
    dtype: str = "float32",
    lora_r: int | None = None,
    **config_kwargs: object,
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A small random Llama model with the tokenizer of `tiny_tokenizer`, without any download.

    The same seed gives the same weights, and torch's global random state is left as it was.

    Args:
        seed: seed of the weights.
        hidden_size: width of the residual stream, a multiple of 4 (four heads, two key-value heads).
        num_hidden_layers: number of layers.
        dtype: torch's name of the weights' type.
        lora_r: rank of a LoRA adapter over all linear layers, or None for the bare model. The adapter's second
            factor is zero at first, as in peft, so that the adapted model computes what the bare one does.
        config_kwargs: further fields of `LlamaConfig`.

    Returns:
        The model, in evaluation mode, and the tokenizer.
    """
    tokenizer = tiny_tokenizer()
    fields = {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden_size,
        "intermediate_size": 2 * hidden_size,
        "num_hidden_layers": num_hidden_layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": tokenizer.model_max_length,
        "tie_word_embeddings": True,
        "initializer_range": 0.1,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        **config_kwargs,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**fields)).to(getattr(torch, dtype))
        if lora_r:
            from grpo_ext.models.policy import add_lora

            model = add_lora(model, lora_r)
    return model.eval(), tokenizer
