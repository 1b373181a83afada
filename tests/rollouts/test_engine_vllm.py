"""vLLM in this process, for real: what it samples, in which order, its beams, and that a sync reaches it."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from grpo_ext.rollouts.strategies import GroupSize
from grpo_ext.rollouts.vllm.engine import EngineOptions, EngineRollouts
from grpo_ext.rollouts.vllm.requests import GroupSearch, Sampling
from real_vllm import ENVIRONMENT, PROMPT, chi_square, expected, logps, policy, save_tiny

pytestmark = pytest.mark.vllm

OTHER = [40, 9, 3, 22]
SAMPLES = 4000


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineRollouts]:
    folder = save_tiny(tmp_path_factory.mktemp("tiny"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        options = EngineOptions(folder, torch.float32, max_model_length=64, max_num_seqs=256)
        size = GroupSize(completions=8, beams=8)
        made = EngineRollouts(policy(folder), Sampling(max_tokens=8), GroupSearch("beam", size), [1], options)
        made.sync_weights()
        yield made
        made.folder.close()


def with_sampling(engine: EngineRollouts, monkeypatch: pytest.MonkeyPatch, **fields: Any) -> EngineRollouts:
    monkeypatch.setattr(engine, "sampling", dataclasses.replace(engine.sampling, **fields))
    monkeypatch.setattr(engine, "search", GroupSearch())
    return engine


@pytest.mark.parametrize(
    "fields",
    [{}, {"temperature": 0.6}, {"temperature": 0.8, "top_p": 0.7}, {"temperature": 0.9, "top_k": 7}, {"min_p": 0.3}],
    ids=str,
)
def test_samples_follow_the_policy(
    engine: EngineRollouts, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    made = with_sampling(engine, monkeypatch, max_tokens=1, **fields)
    _, completions, found, _ = made.generate([PROMPT] * SAMPLES, None, SAMPLES)
    counts = torch.bincount(torch.tensor([c[0] for c in completions]), minlength=100).double()
    probabilities = expected(made.model, **fields)
    assert counts[probabilities == 0].sum() == 0
    assert chi_square(counts, probabilities) > 1e-4
    # The test can tell: other settings, or the base without its adapter, do not pass
    others = [{"temperature": 0.75}, {"temperature": 0.8, "top_p": 0.85}, {"temperature": 0.9, "top_k": 9}]
    assert all(chi_square(counts, expected(made.model, **other)) < 1e-6 for other in others)
    with made.model.disable_adapter():
        assert chi_square(counts, expected(made.model, **fields)) < 1e-6
    # Log-probabilities are those of the distribution that was sampled from
    said = torch.tensor([row[0][0] for row in found]).double()
    meant = probabilities[[c[0] for c in completions]].log()
    assert (said - meant).abs().max() < 1e-4


def test_rows_keep_their_order(engine: EngineRollouts, monkeypatch: pytest.MonkeyPatch) -> None:
    made = with_sampling(engine, monkeypatch, temperature=0.7)
    prompts = [PROMPT] * 3 + [OTHER] * 3 + [PROMPT] * 1 + [[8]] * 2
    given, completions, found, _ = made.generate(prompts, None, 3)
    assert given == prompts and len(completions) == len(prompts)
    for prompt, completion, values in zip(prompts, completions, found, strict=True):
        own = logps(made.model, prompt, completion, 0.7)
        assert (torch.tensor(values)[:, 0] - own).abs().max() < 1e-4
        others = [other for other in (PROMPT, OTHER, [8]) if other != prompt]
        for other in others:
            assert (logps(made.model, other, completion, 0.7) - own).abs().max() > 0.05
    # A group's rows are different samples
    assert len({tuple(c) for c in completions[:3]}) == 3


def test_beams_are_unique_and_better_than_samples(engine: EngineRollouts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "sampling", dataclasses.replace(engine.sampling, temperature=0.8, max_tokens=4))
    engine.model.train()
    _, completions, found, _ = engine.generate([PROMPT] * 8 + [OTHER] * 8, None, 8)
    engine.model.eval()
    for prompt, start in ((PROMPT, 0), (OTHER, 8)):
        group = [tuple(c) for c in completions[start : start + 8]]
        assert len(set(group)) == 8
        totals = []
        for beam, values in zip(group, found[start : start + 8], strict=True):
            own = logps(engine.model, prompt, list(beam), 0.8)
            assert (torch.tensor(values)[:, 0] - own).abs().max() < 1e-4
            totals.append(own.sum().item())
        search = engine.search
        monkeypatch.setattr(engine, "search", GroupSearch())
        _, samples, _, _ = engine.generate([prompt] * 64, None, 64)
        monkeypatch.setattr(engine, "search", search)
        drawn = [logps(engine.model, prompt, s, 0.8).sum().item() for s in samples if len(s) == 4]
        # One of 64 samples may be the best beam itself
        assert max(totals) >= max(drawn) - 1e-4
        assert min(totals) > sum(drawn) / len(drawn)
    # Evaluation is sampled
    _, rows, _, _ = engine.generate([PROMPT] * 64, None, 8)
    assert len({tuple(row) for row in rows}) > 40


def test_each_sync_reaches_the_engine(engine: EngineRollouts, monkeypatch: pytest.MonkeyPatch) -> None:
    made = with_sampling(engine, monkeypatch, temperature=1.0)
    prompts = [PROMPT] * 4 + [OTHER] * 4
    weights = [w for w in made.model.parameters() if w.requires_grad]
    optimizer = torch.optim.Adam(weights, lr=0.05)
    for step in range(3):
        _, completions, found, _ = made.generate(prompts, None, 4)
        rows = list(zip(prompts, completions, strict=True))
        before = [logps(made.model, p, c, 1.0) for p, c in rows]
        loss = made.model(torch.tensor([PROMPT + completions[0]])).logits.log_softmax(-1)[0, :, step].sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        # The engine still has the adapter from before the step
        after = [logps(made.model, p, c, 1.0) for p, c in rows]
        assert max((b - a).abs().max() for b, a in zip(before, after, strict=True)) > 0.3
        made.sync_weights()
        _, completions, found, _ = made.generate(prompts, None, 4)
        for prompt, completion, values in zip(prompts, completions, found, strict=True):
            said = torch.tensor(values)[:, 0]
            assert (said - logps(made.model, prompt, completion, 1.0)).abs().max() < 2e-4
            with made.model.disable_adapter():
                assert (said - logps(made.model, prompt, completion, 1.0)).abs().max() > 0.3


def test_a_long_prompt_is_named(engine: EngineRollouts, monkeypatch: pytest.MonkeyPatch) -> None:
    made = with_sampling(engine, monkeypatch)
    with pytest.raises(ValueError, match="prompt of row 1 has 64 tokens, and the vLLM engine's window is 64"):
        made.generate([[5], [5] * 64], None, 1)
    _, completions, _, _ = made.generate([[5] * 63], None, 1)
    assert len(completions[0]) == 1


def test_a_rank_above_the_limit_is_named(tmp_path: Any) -> None:
    folder = save_tiny(tmp_path)
    with pytest.raises(ValueError, match="The adapter has rank 520, and vLLM serves ranks up to 512"):
        EngineRollouts(policy(folder, 520), Sampling(), GroupSearch(), [1], EngineOptions(folder, torch.float32))
