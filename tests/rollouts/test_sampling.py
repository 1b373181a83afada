"""Our decoding loop against transformers' own, and against the distribution that it has to draw from."""

from typing import Any

import pytest
import torch
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteriaList,
)

from grpo_ext.models import tiny_policy
from grpo_ext.models.policy import add_lora
from grpo_ext.rollouts.local import LocalGroups
from grpo_ext.rollouts.sampling import Rules
from grpo_ext.scoring.attention import use_tree_attention

EOS = (1, *range(30, 55))


def policy() -> PreTrainedModel:
    model, _ = tiny_policy(seed=0)
    # Random weights alone give a nearly uniform policy, which would hide a wrong temperature
    with torch.no_grad():
        model.lm_head.weight *= 2
    use_tree_attention(model)
    return model


def batch(prompts: list[list[int]], repeats: list[int]) -> dict[str, torch.Tensor]:
    rows = [prompt for prompt, count in zip(prompts, repeats, strict=True) for _ in range(count)]
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


def draw(model: Any, inputs: dict[str, torch.Tensor], tokens: int, seed: int = 0, **fields: Any) -> torch.Tensor:
    options: dict[str, Any] = {"do_sample": True, "top_k": 0, "temperature": 0.9, "eos_token_id": list(EOS)} | fields
    config = GenerationConfig(max_new_tokens=tokens, pad_token_id=0, **options)
    torch.manual_seed(seed)
    return model.generate(**inputs, generation_config=config)


MIXED = batch([[5, 6, 8, 9], [20, 21], [5, 6], [20, 21]], [4, 4, 3, 1])


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize(
    "fields",
    [{}, {"top_p": 0.8}, {"top_k": 5, "temperature": 1.5},
     {"min_p": 0.01, "repetition_penalty": 1.3, "temperature": 1.5}, {"do_sample": False, "temperature": 1.0}],
    ids=["temperature", "top-p", "top-k", "min-p and penalty", "greedy"],
)  # fmt: skip
def test_a_seed_gives_the_completions_of_transformers(lora: bool, fields: dict[str, Any]) -> None:
    model = policy()
    wrapped = add_lora(model, 4) if lora else model
    wanted = draw(wrapped, MIXED, 12, **fields)
    with LocalGroups().within(model):
        found = draw(wrapped, MIXED, 12, **fields)
    assert torch.equal(found, wanted)
    ended = torch.isin(wanted[:, 4:], torch.tensor(EOS)).any(1)
    assert ended.any() or not fields.get("do_sample", True)


def test_ended_rows_that_wait_to_be_dropped_stay_ended() -> None:
    model = policy()
    # One ended row of 40 is not yet worth the copy
    many = batch([[5, 6, 8, 9], [20, 21]], [25, 15])
    wanted = draw(model, many, 12)
    with LocalGroups().within(model):
        assert torch.equal(draw(model, many, 12), wanted)


class Penalty:
    """transformers' repetition penalty as its newer versions have it: told where each row of the batch begins."""

    def __init__(self, penalty: float, prompt_ignore_length: torch.Tensor) -> None:
        self.penalty, self.prompt_ignore_length = penalty, prompt_ignore_length

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        result = scores.clone()
        for row, start in enumerate(self.prompt_ignore_length.tolist()):
            result[row, ids[row, start:]] /= self.penalty
        return result


def test_a_penalty_knows_the_padding_of_the_rows_that_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grpo_ext.rollouts.sampling.RepetitionPenaltyLogitsProcessor", Penalty)
    processors = LogitsProcessorList([Penalty(2.0, torch.tensor([0, 0, 2, 2]))])
    rules = Rules(processors, StoppingCriteriaList(), 0, first_rows=torch.tensor([0, 2]))
    ids = torch.tensor([[0, 0, 3], [0, 0, 3], [0, 4, 3]])
    found = rules.scores(ids, torch.ones(3, 5), torch.tensor([1, 0, 0]))
    # Token 0 is padding in a row of the second prompt, and a token like others in those of the first
    assert found.tolist() == [[1, 1, 1, 0.5, 1], [0.5, 1, 1, 0.5, 1], [0.5, 1, 1, 0.5, 0.5]]


def test_ended_rows_cost_nothing() -> None:
    model = policy()
    tokens: list[int] = []
    model.get_input_embeddings().register_forward_hook(lambda _, inputs, out: tokens.append(inputs[0].numel()))
    with LocalGroups().within(model):
        rows = draw(model, batch([[5, 6, 8, 9]], [8]), 12)
    lengths = []
    for row in rows[:, 4:].tolist():
        lengths.append(next((i + 1 for i, token in enumerate(row) if token in EOS), len(row)))
    assert tokens[0] == 4 and len(set(lengths)) > 2
    assert tokens[1:] == [sum(length > step for length in lengths) for step in range(1, max(lengths))]


@pytest.mark.parametrize(
    "fields", [{}, {"temperature": 0.5}, {"top_k": 4}, {"top_p": 0.6, "temperature": 1.3}], ids=str
)
def test_draws_follow_the_softmax(fields: dict[str, Any]) -> None:
    model = policy()
    prompts, count = [[5, 6, 8, 9], [20, 21]], 3000
    with LocalGroups().within(model):
        rows = draw(model, batch(prompts, [count, count]), 2, eos_token_id=1, **fields)
    options = {"temperature": 0.9, "top_k": 0, "top_p": 1.0} | fields
    for index, prompt in enumerate(prompts):
        mine = rows[index * count : (index + 1) * count, 4:]
        assert chi_square(mine[:, 0], target(model, prompt, **options)) < 5
        # After the most frequent first token, because a row's own keys and values count from there on
        first = int(mine[:, 0].mode().values)
        assert chi_square(mine[mine[:, 0] == first, 1], target(model, [*prompt, first], **options)) < 5


@torch.no_grad()
def target(model: PreTrainedModel, text: list[int], temperature: float, top_k: int, top_p: float) -> torch.Tensor:
    """What the definitions say, without transformers' processors."""
    probs = (model(torch.tensor([text])).logits[0, -1].double() / temperature).softmax(-1)
    order = probs.argsort(descending=True)
    kept = top_k or len(probs)
    # The smallest set whose probability reaches top_p
    kept = min(kept, int((probs[order].cumsum(0) < top_p).sum()) + 1)
    probs[order[kept:]] = 0
    return probs / probs.sum()


def chi_square(drawn: torch.Tensor, probs: torch.Tensor) -> float:
    """Pearson's statistic in standard deviations above its mean; cells that expect fewer than 5 are one cell."""
    expected = probs * len(drawn)
    observed = torch.bincount(drawn, minlength=len(probs)).double()
    assert not observed[probs == 0].any()
    large = expected >= 5
    e = torch.cat([expected[large], expected[~large].sum()[None]])
    o = torch.cat([observed[large], observed[~large].sum()[None]])
    e, o = e[e > 1], o[e > 1]
    degrees = len(e) - 1
    return float((((o - e) ** 2 / e).sum() - degrees) / (2 * degrees) ** 0.5)


def test_generate_is_the_models_own_again() -> None:
    model = policy()
    with pytest.raises(RuntimeError), LocalGroups().within(model):
        raise RuntimeError
    assert "generate" not in vars(model)
    own = model.generate
    model.generate = own
    with LocalGroups().within(model), LocalGroups().within(model):
        pass
    assert vars(model)["generate"] is own
