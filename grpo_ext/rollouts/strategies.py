"""Groups that come from a search, on a model in this process: a row each."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from grpo_ext.ops.inclusion import log_inclusion_weights
from grpo_ext.rollouts.decode import Prompts
from grpo_ext.rollouts.sampling import Rules, sample
from grpo_ext.rollouts.search import Beams, Search, search_beams

logger = logging.getLogger("grpo_ext")


@dataclass(frozen=True)
class GroupSize:
    """Numbers of a group.

    Attributes:
        completions: G.
        beams: beams of the search; at least G, or for beam+sampling the beams among the G.
        beam_groups: parts of a diverse search.
        diversity_penalty: nats a token costs for each beam of an earlier part that took it.
        length_penalty: exponent of the length that a beam's log-probability is divided by.
    """

    completions: int
    beams: int
    beam_groups: int = 1
    diversity_penalty: float = 0.0
    length_penalty: float = 1.0


@dataclass(frozen=True)
class Groups:
    """The groups of P prompts.

    Attributes:
        tokens: (P, G, T) token ids, padded after the end.
        logps: (P, G) log-probabilities of whole completions, where `log_weights` are.
        log_weights: (P, G) log of the weight of each completion in a sum over the group that estimates an expectation
            under the policy; None where all weigh 1/G.
    """

    tokens: Tensor
    logps: Tensor | None = None
    log_weights: Tensor | None = None


def _beam(prompts: Prompts, prompt_ids: Tensor, rules: Rules, size: GroupSize) -> Groups:
    search = Search(size.beams, "beam", size.length_penalty)
    beams = search_beams(prompts, prompt_ids, rules, search)
    return Groups(_filled(beams, size.completions))


def _diverse_beam(prompts: Prompts, prompt_ids: Tensor, rules: Rules, size: GroupSize) -> Groups:
    search = Search(size.beams, "beam", size.length_penalty, size.beam_groups, size.diversity_penalty)
    return Groups(_filled(search_beams(prompts, prompt_ids, rules, search), size.completions))


def _beam_and_sampling(prompts: Prompts, prompt_ids: Tensor, rules: Rules, size: GroupSize) -> Groups:
    search = Search(size.beams, "beam", size.length_penalty)
    beams = _filled(search_beams(prompts, prompt_ids, rules, search), size.beams)
    rows = torch.arange(len(prompt_ids), device=prompt_ids.device).repeat_interleave(size.completions - size.beams)
    samples = sample(prompts, prompt_ids, rows, rules).unflatten(0, (len(prompt_ids), -1))
    width = max(beams.size(2), samples.size(2))
    parts = [torch.nn.functional.pad(part, (0, width - part.size(2)), value=rules.pad) for part in (beams, samples)]
    return Groups(torch.cat(parts, 1))


def _stochastic_beam(prompts: Prompts, prompt_ids: Tensor, rules: Rules, size: GroupSize) -> Groups:
    # The key of the best beam that is left out is the threshold of those that are kept
    beams = search_beams(prompts, prompt_ids, rules, Search(size.completions + 1, "gumbel"))
    kept = Beams(*(x[:, : size.completions] for x in (beams.tokens, beams.logps, beams.keys, beams.ended)))
    weights = log_inclusion_weights(kept.logps, beams.keys[:, -1:])
    # Where the policy has fewer completions than the group, the places that are left over weigh nothing
    weights = weights.masked_fill(kept.keys == -torch.inf, -torch.inf)
    return Groups(_filled(kept, size.completions), kept.logps, weights)


def _filled(beams: Beams, count: int) -> Tensor:
    """(P, G, T) tokens of the best beams; where a prompt has fewer, they are repeated in turn."""
    found = (beams.keys > -torch.inf).sum(1)
    if (found < count).any():
        short = int((found < count).sum())
        logger.warning(
            "Beams: %d of %d prompts have fewer than %d different completions; theirs are repeated.",
            short,
            len(found),
            count,
        )
    places = torch.arange(count, device=found.device)[None] % found[:, None]
    return beams.tokens.gather(1, places[:, :, None].expand(*places.shape, beams.tokens.size(2)))


# Values of `group_generation` beside "sampling", whose rows are independent of each other
SEARCHES: dict[str, Callable[[Prompts, Tensor, Rules, GroupSize], Groups]] = {
    "beam": _beam,
    "diverse_beam": _diverse_beam,
    "beam+sampling": _beam_and_sampling,
    "stochastic_beam": _stochastic_beam,
}
