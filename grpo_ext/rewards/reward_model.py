"""A learned reward: the score that a sequence classifier gives to a whole conversation."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification

from grpo_ext.rewards.classifiers import chunks_by_length, load_classifier, longest_row, padded
from grpo_ext.rewards.process_model import share_good
from grpo_ext.rewards.rows import Completion

logger = logging.getLogger(__name__)

# File beside the weights that says how well the model told apart pairs that it was not trained on
RECORD = "reward_model.json"
# An accuracy whose interval reaches down to here is hardly above a coin's
NEAR_CHANCE = 0.55


def conversation_ids(prompt: Completion, completion: Completion, tokenizer: Any) -> list[int]:
    """A prompt and its completion in a classifier's own tokens, with the end that its training pairs had.

    Messages go through the tokenizer's chat template. Text is joined as it is and followed by the end token, unless
    the tokenizer adds one of its own.

    Args:
        prompt: text, or a list of messages.
        completion: text, or a list of messages; text after messages is taken for the assistant's.
        tokenizer: the classifier's.

    Returns:
        Token ids.

    Raises:
        ValueError: messages, and a tokenizer without a chat template.
    """
    if isinstance(prompt, str) and isinstance(completion, str):
        ids = list(tokenizer(prompt + completion)["input_ids"])
        end = tokenizer.eos_token_id
        return ids if end is None or ids[-1:] == [end] else [*ids, end]
    if tokenizer.chat_template is None:
        raise ValueError(
            f"the reward model's tokenizer {tokenizer.name_or_path!r} has no chat template, but prompts are messages; "
            "give plain prompts, or save the tokenizer with a `chat_template`."
        )
    messages = [
        {"role": role, "content": part} if isinstance(part, str) else part
        for role, parts in (("user", prompt), ("assistant", completion))
        for part in ([parts] if isinstance(parts, str) else parts)
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


class RewardModel:
    """A reward function that scores conversations with a sequence classifier, in chunks.

    The score is the model's one output as it is, or the probability of one of several labels. A conversation that is
    longer than the model reads has no score.

    Args:
        model: sequence classifier.
        tokenizer: its own, which need not be the policy's, padding as `agree_on_padding` leaves it.
        batch_size: conversations of a forward pass.
        label: name or number of the label whose probability is the reward; needed where there are several.
        max_length: tokens of a conversation at most; None reads it off model and tokenizer.
        name_in_logs: name of the reward in the trainer's log.

    Raises:
        ValueError: several labels and none named, an unknown label, or a batch size below 1.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        batch_size: int = 16,
        label: str | int | None = None,
        max_length: int | None = None,
        name_in_logs: str = "reward_model",
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"`batch_size` of the reward model is {batch_size}; it must be at least 1.")
        self.model, self.tokenizer, self.batch_size = model.eval(), tokenizer, batch_size
        self.label = _label_index(model.config, label)
        self.max_length = max_length or longest_row(model, tokenizer)
        self.__name__ = name_in_logs

    def __call__(
        self, prompts: Sequence[Completion], completions: Sequence[Completion], **columns: Any
    ) -> list[float | None]:
        """Score B completions.

        Args:
            prompts: B prompts.
            completions: B completions.
            columns: not read.

        Returns:
            B scores, None for what is too long.
        """
        pairs = zip(prompts, completions, strict=True)
        return self.scores([conversation_ids(prompt, completion, self.tokenizer) for prompt, completion in pairs])

    @torch.no_grad()
    def scores(self, rows: Sequence[Sequence[int]]) -> list[float | None]:
        """Score conversations that are token ids already.

        Args:
            rows: what `conversation_ids` gives.

        Returns:
            A score a row, None for what is too long.
        """
        result: list[float | None] = [None] * len(rows)
        readable = [place for place, ids in enumerate(rows) if self.max_length is None or len(ids) <= self.max_length]
        for chunk in chunks_by_length(readable, self.batch_size, lambda place: len(rows[place])):
            batch = padded([rows[place] for place in chunk], self.tokenizer.pad_token_id, self.model.device)
            logits = self.model(**batch).logits.float()
            found = logits.squeeze(-1) if self.label is None else share_good(logits, self.label)
            for place, score in zip(chunk, found.tolist(), strict=True):
                result[place] = score
        return result


def _label_index(config: Any, label: str | int | None) -> int | None:
    """Index of the rewarded label; None where the model has one output."""
    names = [str(config.id2label[index]) for index in range(config.num_labels)]
    if config.num_labels == 1:
        if label is not None:
            raise ValueError(f"`label` is {label!r}, but the reward model has one output, which is the reward itself.")
        return None
    if label is None:
        raise ValueError(
            f"the reward model has {len(names)} labels ({', '.join(names)}); name the one whose probability is the "
            "reward in `label`."
        )
    index = names.index(label) if label in names else int(label) if str(label).isdecimal() else len(names)
    if index >= len(names):
        raise ValueError(f"`label` {label!r} is none of the reward model's labels: {', '.join(names)}.")
    return index


def load_reward_model(
    name: str,
    *,
    device: torch.device | str = "cpu",
    dtype: str = "auto",
    load_in_8bit: bool = False,
    load_in_4bit: bool = False,
    **options: Any,
) -> RewardModel:
    """Load a sequence classifier as a reward, and warn when its accuracy beside the weights is near one half.

    Args:
        name: folder or hub name.
        device: where to put it.
        dtype: torch's name of its type, or "auto" for the one it was saved in.
        load_in_8bit: hold the weights in 8 bit.
        load_in_4bit: hold the weights in 4 bit.
        options: of `RewardModel`.

    Returns:
        The reward.

    Raises:
        OSError: there is no such model.
        ValueError: it is no sequence classifier, has no safetensors, or its labels do not fit `label`.
    """
    kinds = {"ForSequenceClassification": AutoModelForSequenceClassification}
    model, tokenizer = load_classifier(name, kinds, "reward_model", device, dtype, load_in_8bit, load_in_4bit)
    record = Path(name) / RECORD
    if record.is_file():
        warning = doubt(json.loads(record.read_text(encoding="utf-8")))
        if warning is not None:
            logger.warning("reward model %s: %s", name, warning)
    return RewardModel(model, tokenizer, **options)


def doubt(record: Mapping[str, Any]) -> str | None:
    """Say why a reward model should not be trained on, or None.

    Args:
        record: with `accuracy` on held-out pairs and its `interval`, both None where nothing was held out.

    Returns:
        A sentence for people.
    """
    if record.get("accuracy") is None:
        return "its accuracy is not known, because no pairs were held out."
    low, high = record["interval"]
    if low > NEAR_CHANCE:
        return None
    return (
        f"it ranks {record['accuracy']:.0%} of held-out pairs rightly (95% interval {low:.0%} to {high:.0%}), hardly "
        "more than a coin; a policy that is trained on it learns its mistakes."
    )
