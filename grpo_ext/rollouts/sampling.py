"""Sampling row by row, where a row that has ended costs nothing more."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor, StoppingCriteriaList

from grpo_ext.rollouts.decode import Decoder, Prompts

# Rows are dropped when this share of them has ended: dropping copies what the others hold
DROP_SHARE = 1 / 16


@dataclass(frozen=True)
class Rules:
    """What transformers' `generate` has made of its generation config.

    Attributes:
        processors: temperature, top-p and so on, from (R, L) ids and (R, V) logits to (R, V) logits.
        stopping: which rows have ended, from (R, L) ids; the length limit included.
        pad: token after the end of a row.
        first_rows: (P,) row of the batch, for which they were made, that has each prompt.
        sample: whether to draw; if not, the most probable token is taken.
        uniforms: takes (R,) places of rows and the number of tokens that they have, gives (R,) numbers from 0 to 1 by
            which their next tokens are drawn, so that a row's draws are its own; None draws from torch's generator.
    """

    processors: LogitsProcessorList = field(repr=False)
    stopping: StoppingCriteriaList = field(repr=False)
    pad: int
    first_rows: Tensor
    sample: bool = True
    uniforms: Callable[[Tensor, int], Tensor] | None = None

    def scores(self, ids: Tensor, logits: Tensor, prompts: Tensor) -> Tensor:
        """The processors' logits for some rows.

        Args:
            ids: (R, L) prompts and what was generated.
            logits: (R, V).
            prompts: (R,) prompt of each row.

        Returns:
            (R, V).
        """
        for processor in self.processors:
            # It alone keeps a number for each row of the batch, that of the row's padding
            if isinstance(processor, RepetitionPenaltyLogitsProcessor):
                padding = processor.prompt_ignore_length
                if isinstance(padding, Tensor):
                    rows = padding.to(prompts.device)[self.first_rows[prompts]]
                    processor = RepetitionPenaltyLogitsProcessor(processor.penalty, rows)
            logits = processor(ids, logits)
        return logits


def sample(prompts: Prompts, prompt_ids: Tensor, rows: Tensor, rules: Rules, places: Tensor | None = None) -> Tensor:
    """Draw a completion for each row.

    Args:
        prompts: forwarded prompts.
        prompt_ids: (P, L) their ids as they are given to the processors, padded on the left.
        rows: (R,) prompt of each row, ascending.
        rules: processors and ends.
        places: (R,) place of each row in the result; None is as they come.

    Returns:
        (R, T) token ids, padded after the end of a row.
    """
    decoder = Decoder(prompts, rows)
    ids = prompt_ids[rows]
    live = torch.arange(len(rows), device=rows.device) if places is None else places
    ended = torch.zeros_like(live, dtype=torch.bool)
    logits = decoder.start()
    columns: list[Tensor] = []
    while True:
        scores = rules.scores(ids, logits, decoder.rows)
        tokens = _next(scores, rules, live, len(rows), len(columns))
        tokens = tokens.masked_fill(ended, rules.pad)
        column = torch.full_like(rows, rules.pad)
        column[live] = tokens
        columns.append(column)
        ids = torch.cat([ids, tokens[:, None]], 1)
        ended = ended | rules.stopping(ids, scores)
        if ended.all():
            return torch.stack(columns, 1)
        parents = None
        if ended.sum() >= DROP_SHARE * len(ended):
            parents = (~ended).nonzero().squeeze(1)
            ids, live, ended, tokens = ids[parents], live[parents], ended[parents], tokens[parents]
        logits = decoder.step(tokens, parents)


def _next(scores: Tensor, rules: Rules, live: Tensor, rows: int, length: int) -> Tensor:
    if not rules.sample:
        return scores.argmax(-1)
    if rules.uniforms is not None:
        return tokens_at(scores.softmax(-1), rules.uniforms(live, length))
    return _draw(scores.softmax(-1), live, rows)


def tokens_at(probs: Tensor, uniforms: Tensor) -> Tensor:
    """The tokens at which the cumulative probabilities pass given numbers: one draw a row by its own number.

    Args:
        probs: (R, V).
        uniforms: (R,) numbers from 0 to below 1.

    Returns:
        (R,) tokens, none of probability 0.
    """
    passed = probs.double().cumsum(-1)
    # Sums that are rounded may end beside 1
    bars = uniforms.to(passed)[:, None] * passed[:, -1:]
    return torch.searchsorted(passed, bars, right=True).squeeze(1).clamp(max=probs.size(1) - 1)


def _draw(probs: Tensor, live: Tensor, rows: int) -> Tensor:
    """What torch.multinomial would draw for the live rows if the ended ones were still there.

    So a seed gives the same completions as transformers' own loop.
    """
    noise = probs.new_empty(rows, probs.size(1)).exponential_()
    return (probs / noise[live]).argmax(-1)
