"""A tokenizer ready for group rollouts: left padding, a pad token that is not the end token, a chat template."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from grpo_ext.faults import first_line
from grpo_ext.trust import opened

logger = logging.getLogger(__name__)

# For a base model whose tokenizer brings no template: the messages' texts, one per line.
PLAIN_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
)

# Names under which model makers ship a token meant for padding or left free for the user, best first.
_FREE_TOKENS = (r"fine_?tune.*pad", r"^[<\[|]*pad", r"reserved", r"unused", r"fim_pad")


def choose_pad_token(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """A token to pad with that no completion has a use for, or None if the vocabulary has none.

    In this order: the tokenizer's own pad token unless it is the end token; a special token whose name says that it
    is for padding, reserved or unused; the last special token that is neither begin, end nor unknown token and does
    not occur in the chat template; the unknown token. The end token is never returned: code that rebuilds the
    completion mask from pad ids (Unsloth's trainer does) would mask the end token away, and the policy would not
    learn to stop. For SmolLM2, whose own choice is the end token, the result is `<empty_output>`.

    Args:
        tokenizer: as it was loaded.

    Returns:
        A token of its vocabulary, or None.
    """
    eos = tokenizer.eos_token
    if tokenizer.pad_token is not None and tokenizer.pad_token != eos:
        return tokenizer.pad_token
    added = sorted(tokenizer.added_tokens_decoder.items())
    special = [str(token) for _, token in added if token.special and str(token) != eos]
    for pattern in _FREE_TOKENS:
        for token in special:
            if re.search(pattern, token, re.IGNORECASE):
                return token
    template = str(tokenizer.chat_template)
    named = (tokenizer.bos_token, tokenizer.unk_token)
    idle = [token for token in special if token not in named and token not in template]
    if idle:
        return idle[-1]
    return tokenizer.unk_token if tokenizer.unk_token != eos else None


def prepare_tokenizer(tokenizer: PreTrainedTokenizerBase, chat_template: str | None = None) -> PreTrainedTokenizerBase:
    """Set left padding, the pad token of `choose_pad_token` and, where given, the chat template, in place.

    Args:
        tokenizer: as it was loaded.
        chat_template: in place of its own; None keeps that.

    Returns:
        The same tokenizer.

    Raises:
        ValueError: it has no token to pad with.
    """
    tokenizer.padding_side = "left"
    pad = choose_pad_token(tokenizer)
    if pad is not None:
        tokenizer.pad_token = pad
    elif tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
        logger.warning("the vocabulary has no free token, so padding uses the end token %r", tokenizer.eos_token)
    else:
        raise ValueError(
            f"the tokenizer {tokenizer.name_or_path!r} has neither a pad token, an unknown token nor an end token; "
            "set tokenizer.eos_token and save it beside the model."
        )
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    if tokenizer.chat_template is None:
        logger.warning(
            "the tokenizer has no chat template, so only plain-string prompts will work; for conversational prompts "
            "pass chat_template=PLAIN_CHAT_TEMPLATE or one of your own"
        )
    return tokenizer


def settle_template(tokenizer: PreTrainedTokenizerBase, values: Mapping[str, Any] | None) -> None:
    """Write values of the chat template's variables into it, in place, for whoever renders a prompt and passes none.

    Training passes `chat_template_kwargs` on; warm-up, measurements and the saved tokenizer have the template alone.

    Args:
        tokenizer: of the policy.
        values: variable to a string, number or truth value; None or empty changes nothing.
    """
    if values and tokenizer.chat_template is not None:
        # JSON's words for these are Jinja's
        settled = "".join(f"{{% set {name} = {json.dumps(value)} %}}" for name, value in values.items())
        tokenizer.chat_template = settled + str(tokenizer.chat_template)


def load_tokenizer(
    model: str,
    *,
    revision: str | None = None,
    trust_remote_code: bool | None = False,
    chat_template: str | None = None,
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model folder or hub name and prepare it for rollouts.

    Args:
        model: folder or hub name, as `resolve_model` returns it.
        revision: branch, tag or commit on the hub.
        trust_remote_code: whether code that comes with the model may run; None: never, whatever the policy's may.
        chat_template: template to use in place of the tokenizer's own, for instance `PLAIN_CHAT_TEMPLATE`.

    Returns:
        The tokenizer, padding on the left, with a pad token that is not the end token wherever the vocabulary
        allows it.

    Raises:
        OSError: if there is no tokenizer under that name.
    """
    try:
        tokenizer = opened(AutoTokenizer, model, "model", revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise OSError(f"no tokenizer could be loaded from {model!r}: {first_line(error)}") from error
    return prepare_tokenizer(tokenizer, chat_template)
