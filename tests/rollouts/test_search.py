"""Searches against a search written down plainly, and against enumeration of all completions of a small model."""

import itertools
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, PreTrainedModel

from families import make_family
from grpo_ext.ops.inclusion import advantages_without_replacement
from grpo_ext.rollouts.local import LocalGroups
from grpo_ext.rollouts.search import conditional_gumbels, gumbel
from grpo_ext.rollouts.strategies import SEARCHES, Groups, GroupSize
from grpo_ext.scoring.attention import use_tree_attention

EOS, PAD = 2, 0
PROMPTS = [[3, 4, 5], [4, 3]]


def small(vocabulary: int, sharpness: float = 1.0) -> PreTrainedModel:
    model = make_family("llama", vocab_size=vocabulary)
    with torch.no_grad():
        model.lm_head.weight *= sharpness
    use_tree_attention(model)
    return model


def search(
    model: PreTrainedModel, strategy: str, size: GroupSize, tokens: int, prompts: list[list[int]], **fields: Any
) -> Groups:
    """A search through transformers' own `generate`, as the trainer calls it."""
    rows = [prompt for prompt in prompts for _ in range(size.completions)]
    width = max(map(len, rows))
    ids = torch.tensor([[PAD] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    config = GenerationConfig(
        max_new_tokens=tokens, pad_token_id=PAD, **{"eos_token_id": EOS, "do_sample": True, "top_k": 0} | fields
    )
    groups = LocalGroups(strategy, size)
    with groups.within(model):
        out = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    assert groups.made is not None and torch.equal(out[:, width:], groups.made.tokens.flatten(0, 1))
    return groups.made


def found(groups: Groups, prompt: int) -> list[tuple[int, ...]]:
    """Completions of a prompt, cut after their end."""
    result = []
    for row in groups.tokens[prompt].tolist():
        result.append(tuple(row[: row.index(EOS) + 1] if EOS in row else row))
    return result


@torch.no_grad()
def log_probs(model: PreTrainedModel, text: list[int], temperature: float = 1.0) -> torch.Tensor:
    return (model(torch.tensor([text])).logits[0, -1].double() / temperature).log_softmax(-1)


def plain_search(
    model: PreTrainedModel, prompt: list[int], tokens: int, size: GroupSize, temperature: float
) -> list[tuple[int, ...]]:
    """Beam search in parts, each part paying for the tokens that the parts before it took at the same step."""
    width = size.beams // size.beam_groups
    parts: list[list[tuple[float, tuple[int, ...], float, bool]]] = [[(0.0, (), 0.0, False)]] * size.beam_groups
    for step in range(1, tokens + 1):
        taken: dict[int, int] = {}
        for index, part in enumerate(parts):
            offers = [beam for beam in part if beam[3]]
            for _, text, total, ended in part:
                if ended:
                    continue
                for token, value in enumerate(log_probs(model, [*prompt, *text], temperature).tolist()):
                    score = total + value - size.diversity_penalty * taken.get(token, 0)
                    offers.append((score / step**size.length_penalty, (*text, token), score, False))
            offers.sort(key=lambda beam: -beam[0])
            parts[index] = offers[:width]
            for _, text, _, ended in parts[index]:
                if not ended:
                    taken[text[-1]] = taken.get(text[-1], 0) + 1
            parts[index] = [(key, text, total, text[-1] == EOS) for key, text, total, _ in parts[index]]
    everything = sorted((beam for part in parts for beam in part), key=lambda beam: -beam[0])
    return [text for _, text, _, _ in everything][: size.completions]


@pytest.mark.parametrize(
    ("strategy", "size"),
    [
        ("beam", GroupSize(4, 4)),
        ("beam", GroupSize(3, 7, length_penalty=0.0)),
        ("beam", GroupSize(5, 5, length_penalty=2.0)),
        ("diverse_beam", GroupSize(6, 6, beam_groups=3, diversity_penalty=0.7)),
        ("diverse_beam", GroupSize(4, 8, beam_groups=4, diversity_penalty=2.0, length_penalty=0.5)),
    ],
    ids=["beam", "wider", "long", "diverse", "more diverse"],
)
@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_beams_are_those_of_the_plain_search(strategy: str, size: GroupSize, temperature: float) -> None:
    model = small(12, 0.4)
    groups = search(model, strategy, size, 5, PROMPTS, temperature=temperature)
    ends = 0
    for index, prompt in enumerate(PROMPTS):
        wanted = plain_search(model, prompt, 5, size, temperature)
        assert found(groups, index) == wanted
        ends += sum(EOS in text for text in wanted)
    assert ends > 0


def every(model: PreTrainedModel, prompt: list[int], vocabulary: int, tokens: int) -> dict[tuple[int, ...], float]:
    """Log-probability of each completion there is."""
    result = {}
    for length in range(1, tokens + 1):
        for text in itertools.product(range(vocabulary), repeat=length):
            if EOS not in text[:-1] and (text[-1] == EOS or length == tokens):
                result[text] = sum(
                    float(log_probs(model, [*prompt, *text[:place]])[token]) for place, token in enumerate(text)
                )
    return result


def test_a_search_as_wide_as_the_tree_gives_the_most_probable_completions() -> None:
    model = small(6)
    size = GroupSize(8, 40, length_penalty=0.0)
    groups = search(model, "beam", size, 3, PROMPTS)
    for index, prompt in enumerate(PROMPTS):
        ranked = every(model, prompt, 6, 3)
        assert found(groups, index) == sorted(ranked, key=lambda text: -ranked[text])[:8]


@pytest.mark.parametrize("strategy", SEARCHES)
def test_completions_of_a_search_differ(strategy: str) -> None:
    size = GroupSize(6, 3 if strategy == "beam+sampling" else 6, beam_groups=2, diversity_penalty=0.5)
    groups = search(small(50), strategy, size, 6, PROMPTS)
    for index in range(len(PROMPTS)):
        distinct = 3 if strategy in ("beam+sampling", "diverse_beam") else 6
        assert len(set(found(groups, index)[:distinct])) == distinct


def test_beams_come_before_samples_and_samples_are_drawn_anew() -> None:
    model = small(50)
    mixed = search(model, "beam+sampling", GroupSize(40, 2), 4, PROMPTS)
    beams = search(model, "beam", GroupSize(2, 2), 4, PROMPTS)
    again = search(model, "beam+sampling", GroupSize(40, 2), 4, PROMPTS)
    for index in range(2):
        assert found(mixed, index)[:2] == found(beams, index)
        assert found(again, index)[:2] == found(beams, index) and found(again, index)[2:] != found(mixed, index)[2:]


def test_a_group_larger_than_the_number_of_completions_is_filled_and_named(caplog: pytest.LogCaptureFixture) -> None:
    model = small(6)
    with caplog.at_level("WARNING", "grpo_ext"):
        groups = search(model, "beam", GroupSize(9, 9), 1, PROMPTS)
    assert "2 of 2 prompts have fewer than 9 different completions" in caplog.text
    assert len(set(found(groups, 0))) == 6 and found(groups, 0)[6:] == found(groups, 0)[:3]
    stochastic = search(model, "stochastic_beam", GroupSize(9, 9), 1, PROMPTS)
    weights = stochastic.log_weights
    assert weights is not None and stochastic.logps is not None
    # All completions there are: each is in with certainty, so each weighs its probability
    torch.testing.assert_close(weights[:, :6], stochastic.logps[:, :6])
    assert (weights[:, 6:] == -torch.inf).all()


def test_conditional_gumbels_have_the_maximum_that_was_asked_for() -> None:
    torch.manual_seed(0)
    logps = torch.randn(4000, 5, dtype=torch.double).log_softmax(-1)
    logps[:, 3] = -torch.inf
    logps = logps.log_softmax(-1)
    maximum = gumbel(logps[:, 0])
    keys = conditional_gumbels(logps, maximum)
    torch.testing.assert_close(keys.max(1).values, maximum)
    assert (keys[:, 3] == -torch.inf).all()
    # With a Gumbel(0) as maximum they are independent Gumbels again: mean and variance of each, none tied to another
    rest = (keys - logps)[:, [0, 1, 2, 4]]
    assert (rest.mean(0) - 0.5772).abs().max() < 0.1
    assert (rest.var(0) - torch.pi**2 / 6).abs().max() < 0.25
    assert (torch.corrcoef(rest.T) - torch.eye(4)).abs().max() < 0.07


DRAWS = 3000


def without_replacement() -> tuple[PreTrainedModel, dict[tuple[int, ...], float], Groups]:
    model = small(5, 0.7)
    torch.manual_seed(0)
    groups = search(model, "stochastic_beam", GroupSize(3, 3), 2, [[3, 4]] * DRAWS)
    return model, every(model, [3, 4], 5, 2), groups


def test_stochastic_beams_are_a_sample_without_replacement() -> None:
    _, logps, groups = without_replacement()
    first: dict[tuple[int, ...], int] = {}
    second: dict[tuple[int, ...], int] = {}
    assert groups.logps is not None
    for index in range(DRAWS):
        rows = found(groups, index)
        assert len(set(rows)) == 3
        first[rows[0]] = first.get(rows[0], 0) + 1
        second[rows[1]] = second.get(rows[1], 0) + 1
        for row, logp in zip(rows, groups.logps[index].tolist(), strict=True):
            assert logp == pytest.approx(logps[row], abs=1e-4)
    p = {text: float(torch.tensor(value).exp()) for text, value in logps.items()}
    assert sum(p.values()) == pytest.approx(1.0, abs=1e-5)
    for text in p:
        # Drawn second: what is left after another one was drawn first
        later = sum(p[other] * p[text] / (1 - p[other]) for other in p if other != text)
        for counts, probability in ((first, p[text]), (second, later)):
            error = (probability * (1 - probability) / DRAWS) ** 0.5
            assert abs(counts.get(text, 0) / DRAWS - probability) < 4.5 * error + 1e-9


def reward(text: tuple[int, ...]) -> float:
    return sum((place + 1) * token for place, token in enumerate(text)) % 7 + len(text)


def test_weighted_sums_are_unbiased_where_plain_beams_are_not() -> None:
    model, logps, groups = without_replacement()
    texts = list(logps)
    p = torch.tensor([logps[text] for text in texts], dtype=torch.double).exp()
    f = torch.tensor([reward(text) for text in texts], dtype=torch.double)
    # ∇ E[f] by the logit of each completion of one softmax over all of them: p (f − E[f])
    exact, gradient = (p * f).sum(), p * (f - (p * f).sum())
    assert groups.log_weights is not None and groups.logps is not None
    place = torch.tensor([[texts.index(row) for row in found(groups, index)] for index in range(DRAWS)])
    w = groups.log_weights.double().exp()
    values = (w * f[place]).sum(1)
    assert abs(values.mean() - exact) < 4 * values.std() / DRAWS**0.5

    index = torch.arange(DRAWS).repeat_interleave(3)
    rewards, flat = f[place].flatten(), (groups.logps.double().flatten(), groups.log_weights.double().flatten())
    a = advantages_without_replacement(rewards, index, *flat)
    estimates = by_logit(place, w * a.view(-1, 3), p)
    error = estimates.std(0) / DRAWS**0.5
    assert ((estimates.mean(0) - gradient).abs() < 4.5 * error + 1e-9).all()
    # The tolerance is tight enough to tell: an unweighted mean, or the mean of the group as baseline, is far outside
    for weights in (
        torch.full_like(w, 1 / 3) * (f[place] - f[place].mean(1, keepdim=True)),
        w * (f[place] - f[place].mean(1, keepdim=True)),
    ):
        wrong = by_logit(place, weights, p)
        assert ((wrong.mean(0) - gradient).abs() > 8 * wrong.std(0) / DRAWS**0.5).any()
    beams = search(model, "beam", GroupSize(3, 3, length_penalty=0.0), 2, [[3, 4]])
    plain = torch.tensor([reward(row) for row in found(beams, 0)], dtype=torch.double).mean()
    assert abs(plain - exact) > 10 * values.std() / DRAWS**0.5


def by_logit(place: torch.Tensor, weights: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """Σ weight · ∇log p of each group, (P, number of completions)."""
    result = -weights.sum(1, keepdim=True) * p
    return result.scatter_add_(1, place, weights)
