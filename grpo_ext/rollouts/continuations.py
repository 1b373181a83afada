"""Several continuations of each of many prefixes, where a beginning that prefixes share is forwarded once."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from copy import copy

import torch
from transformers import GenerationConfig, PreTrainedModel

from grpo_ext.rollouts.ends import length_until_end
from grpo_ext.rollouts.local import LocalGroups, undecodable

# Tokens of prefixes and continuations that one pass of generation may hold
TOKENS_AT_ONCE = 65_536


class Continuations:
    """Draws from a model in this process.

    Args:
        model: causal language model, not wrapped.
        config: how tokens are drawn; its `max_new_tokens` is set here.
        tokens_at_once: tokens that one pass may hold.
        share: whether shared beginnings are forwarded once; otherwise any model can draw.

    Raises:
        ValueError: the model cannot decode with shared prompts.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        config: GenerationConfig,
        tokens_at_once: int = TOKENS_AT_ONCE,
        share: bool = True,
    ) -> None:
        reason = undecodable(model) if share else None
        if reason is not None:
            raise ValueError(
                f"Roll-outs go on from shared beginnings, but {type(model).__name__} {reason}; use another "
                "`process_reward`, or name a model with plain full attention in `process_rollout_model`."
            )
        self.model, self.config, self.tokens_at_once, self.share = model, copy(config), tokens_at_once, share

    @torch.no_grad()
    def __call__(self, prefixes: Sequence[Sequence[int]], count: int, room: Sequence[int]) -> list[list[list[int]]]:
        """Draw continuations.

        Args:
            prefixes: P lists of token ids, none empty.
            count: K continuations of each.
            room: tokens at most after each prefix; 0 or less gives empty continuations.

        Returns:
            For each prefix K lists of token ids, the end token included.
        """
        result: list[list[list[int]]] = [[[] for _ in range(count)] for _ in prefixes]
        training = self.model.training
        self.model.eval()
        try:
            for chunk in self._chunks([len(prefix) for prefix in prefixes], count, room):
                for place, rows in zip(
                    chunk, self._draw([prefixes[i] for i in chunk], count, room, chunk), strict=True
                ):
                    result[place] = [row[: room[place]] for row in rows]
        finally:
            self.model.train(training)
        return result

    def _chunks(self, lengths: Sequence[int], count: int, room: Sequence[int]) -> Iterator[list[int]]:
        chunk: list[int] = []
        held = longest = 0
        for place, length in enumerate(lengths):
            if room[place] < 1:
                continue
            longest = max(longest, room[place])
            if chunk and held + length + (len(chunk) + 1) * count * longest > self.tokens_at_once:
                yield chunk
                chunk, held, longest = [], 0, room[place]
            chunk.append(place)
            held += length
        if chunk:
            yield chunk

    def _draw(
        self, prefixes: Sequence[Sequence[int]], count: int, room: Sequence[int], chunk: Sequence[int]
    ) -> list[list[list[int]]]:
        pad, device = self.config.pad_token_id, self.model.device
        width = max(map(len, prefixes))
        ids = [[pad] * (width - len(prefix)) + list(prefix) for prefix in prefixes for _ in range(count)]
        mask = [[0] * (width - len(prefix)) + [1] * len(prefix) for prefix in prefixes for _ in range(count)]
        config = copy(self.config)
        config.max_new_tokens = max(room[place] for place in chunk)
        config.max_length = None
        with LocalGroups().within(self.model) if self.share else nullcontext():
            rows = self.model.generate(
                input_ids=torch.tensor(ids, device=device),
                attention_mask=torch.tensor(mask, device=device),
                generation_config=config,
            )[:, width:].tolist()
        ends = self.config.eos_token_id
        known = {ends} if isinstance(ends, int) else set(ends or ())
        ended = [row[: length_until_end(row, known)] for row in rows]
        return [ended[start : start + count] for start in range(0, len(ended), count)]
