"""One search that keeps the W best of all continuations at each step; what "best" means is a row of `RANKS`.

A beam that has ended keeps its place and its key for as long as W better ones have not pushed it out, so the search is
over when all W have ended. With the log-probability as key that is beam search; with a Gumbel-perturbed one it is
stochastic beam search (Kool et al. 2019, 1903.06059), whose W beams are a sample without replacement.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from grpo_ext.rollouts.decode import Decoder, Prompts
from grpo_ext.rollouts.sampling import Rules


@dataclass(frozen=True)
class Search:
    """A kind of search.

    Attributes:
        width: W, beams that are kept for a prompt.
        rank: row of `RANKS`.
        length_penalty: exponent of the length that a beam's log-probability is divided by, for "beam".
        groups: parts of the beams that are searched one after another (Vijayakumar et al. 2018, 1610.02424); W is
            a multiple of it.
        diversity_penalty: nats that a token costs for each beam of an earlier part that took it at this step.
    """

    width: int
    rank: str = "beam"
    length_penalty: float = 1.0
    groups: int = 1
    diversity_penalty: float = 0.0


@dataclass
class Beams:
    """The W beams of P prompts; a place without a beam has the key -inf.

    Attributes:
        tokens: (P, W, T) token ids, padded after the end.
        logps: (P, W) log-probability of the whole beam.
        keys: (P, W) what it is ranked by.
        ended: (P, W) whether nothing follows.
    """

    tokens: Tensor
    logps: Tensor
    keys: Tensor
    ended: Tensor

    @property
    def live(self) -> Tensor:
        """(P, W) whether a beam goes on."""
        return ~self.ended & (self.keys > -torch.inf)

    def best_first(self) -> "Beams":
        """The same beams, those with the highest keys first."""
        order = self.keys.sort(dim=1, descending=True, stable=True).indices
        tokens = self.tokens.gather(1, order[:, :, None].expand_as(self.tokens))
        return Beams(tokens, *(x.gather(1, order) for x in (self.logps, self.keys, self.ended)))


def gumbel(like: Tensor) -> Tensor:
    """Independent samples of Gumbel(0), in the shape of a tensor."""
    return -torch.empty_like(like).exponential_().log()


def conditional_gumbels(logps: Tensor, maximum: Tensor) -> Tensor:
    """Gumbel(log p_i) for each i, given that the largest of them is a known number.

    With independent G_i ~ Gumbel(log p_i) and Z = max G: −log(exp(−max) − exp(−Z) + exp(−G_i)), in the stable form of
    Kool et al. 2019, appendix B.3.

    Args:
        logps: (R, V), -inf for what cannot be.
        maximum: (R,).

    Returns:
        (R, V), of which the largest in each row is `maximum`.
    """
    free = logps + gumbel(logps)
    top = free.max(1, keepdim=True).values
    gap = maximum[:, None] - free + torch.log(-torch.expm1(free - top))
    return maximum[:, None] - gap.clamp(min=0) - torch.log1p(torch.exp(-gap.abs()))


def _by_log_probability(logps: Tensor, parents: Tensor, length: int, search: Search) -> Tensor:
    return logps / length**search.length_penalty


def _by_perturbation(logps: Tensor, parents: Tensor, length: int, search: Search) -> Tensor:
    return conditional_gumbels(logps, parents)


# Key of each continuation, from (R, V) log-probabilities of whole beams and (R,) keys of the beams they continue
RANKS: dict[str, Callable[[Tensor, Tensor, int, Search], Tensor]] = {
    "beam": _by_log_probability,
    "gumbel": _by_perturbation,
}


@torch.no_grad()
def search_beams(prompts: Prompts, prompt_ids: Tensor, rules: Rules, search: Search) -> Beams:
    """The beams of every prompt, all prompts in step.

    Args:
        prompts: P forwarded prompts.
        prompt_ids: (P, L) their ids as they are given to the processors, padded on the left.
        rules: processors, which define the probabilities, and ends.
        search: kind of search.

    Returns:
        W beams for each prompt, best first, different from each other within a part.
    """
    count, device = len(prompt_ids), prompt_ids.device
    beams = Beams(
        tokens=prompt_ids.new_empty(count, search.width, 0),
        logps=torch.zeros(count, search.width, device=device),
        keys=torch.full((count, search.width), -torch.inf, device=device),
        ended=torch.zeros(count, search.width, dtype=torch.bool, device=device),
    )
    first = beams.keys[:, :: search.width // search.groups]
    # The largest of Gumbels whose probabilities sum to 1 is a Gumbel(0)
    first.copy_(gumbel(first) if search.rank == "gumbel" else torch.zeros_like(first))
    decoder = Decoder(prompts, beams.live.nonzero()[:, 0])
    logits = decoder.start()
    while True:
        at = beams.live.nonzero()
        row_of = torch.zeros_like(beams.ended, dtype=torch.long)
        row_of[beams.live] = torch.arange(len(at), device=device)
        ids = torch.cat([prompt_ids[at[:, 0]], beams.tokens[beams.live]], 1)
        beams, origins = _advance(beams, rules.scores(ids, logits, decoder.rows).log_softmax(-1), search, rules.pad)
        live = beams.live
        ids = torch.cat([prompt_ids[live.nonzero()[:, 0]], beams.tokens[live]], 1)
        beams.ended[live] = rules.stopping(ids, logits) if len(ids) else True
        live = beams.live
        if not live.any():
            return beams.best_first()
        parents = row_of.gather(1, origins)[live]
        logits = decoder.step(beams.tokens[:, :, -1][live], parents)


def _advance(beams: Beams, log_probs: Tensor, search: Search, pad: int) -> tuple[Beams, Tensor]:
    """The next beams from (R, V) log-probabilities of the live ones, and the (P, W) place each of them comes from."""
    at = beams.live.nonzero()
    totals = beams.logps[beams.live][:, None] + log_probs
    length = beams.tokens.size(2) + 1
    part = search.width // search.groups
    taken = totals.new_zeros(len(beams.logps), log_probs.size(1)) if search.groups > 1 else None
    found: list[tuple[Tensor, ...]] = []
    for start in range(0, search.width, part):
        here = (at[:, 1] >= start) & (at[:, 1] < start + part)
        mine, place = totals[here], at[here] - torch.tensor([0, start], device=at.device)
        if taken is not None:
            mine = mine - search.diversity_penalty * taken[place[:, 0]]
        parents = beams.keys[:, start : start + part]
        keys = RANKS[search.rank](mine, parents[place[:, 0], place[:, 1]], length, search)
        chosen = _choose(keys, mine, place, beams, slice(start, start + part), pad)
        if taken is not None:
            _, tokens, _, key, ended = chosen
            taken.scatter_add_(1, tokens, (~ended & (key > -torch.inf)).to(taken.dtype))
        found.append((chosen[0] + start, *chosen[1:]))
    origins, tokens, logps, keys, ended = (torch.cat(column, 1) for column in zip(*found, strict=True))
    history = beams.tokens.gather(1, origins[:, :, None].expand(*origins.shape, beams.tokens.size(2)))
    return Beams(torch.cat([history, tokens[:, :, None]], 2), logps, keys, ended), origins


def _choose(keys: Tensor, totals: Tensor, place: Tensor, beams: Beams, part: slice, pad: int) -> tuple[Tensor, ...]:
    """The best of a part's continuations and of its ended beams: origins, tokens, log-probabilities, keys, ended."""
    ended, width = beams.ended[:, part], beams.ended[:, part].size(1)
    best = keys.topk(min(width, keys.size(1)), 1)
    shape = (*ended.shape, best.values.size(1))
    table_keys = keys.new_full(shape, -torch.inf)
    table_tokens = place.new_full(shape, pad)
    table_logps = totals.new_zeros(shape)
    where = (place[:, 0], place[:, 1])
    table_keys[where], table_tokens[where] = best.values, best.indices
    table_logps[where] = totals.gather(1, best.indices)
    old_keys = beams.keys[:, part].masked_fill(~ended, -torch.inf)
    all_keys = torch.cat([table_keys.flatten(1), old_keys], 1)
    all_logps = torch.cat([table_logps.flatten(1), beams.logps[:, part]], 1)
    all_tokens = torch.cat([table_tokens.flatten(1), torch.full_like(ended, pad, dtype=torch.long)], 1)
    top = all_keys.topk(width, 1)
    continued = shape[1] * shape[2]
    was_ended = top.indices >= continued
    origins = torch.where(was_ended, top.indices - continued, top.indices // shape[2])
    tokens, logps = all_tokens.gather(1, top.indices), all_logps.gather(1, top.indices)
    return origins, tokens, logps, top.values, was_ended & (top.values > -torch.inf)
