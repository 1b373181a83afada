"""The correction for a sampler that is not quite the policy: same weights and metrics, one forward pass less."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import largest_difference, make, weights
from trl import GRPOTrainer

from grpo_ext.ops.sampler import CORRECTIONS, sampler_correction
from grpo_ext.trainer.sampler import METRICS, SamplerTrainer


class Sampler:
    """Stands in for vLLM: samples from the policy, and gives log-probabilities that are off as rounding makes them."""

    def __init__(self, trainer: GRPOTrainer) -> None:
        self.trainer = trainer
        self.random = torch.Generator().manual_seed(0)

    def sync_weights(self) -> None:
        pass

    def generate(self, prompts: list[list[int]], **kwargs: Any) -> tuple[Any, ...]:
        completions, logprobs = [], []
        for row, prompt in enumerate(prompts):
            length = 3 + row % 5
            tokens = torch.randint(4, 100, (length,), generator=self.random)
            with torch.no_grad():
                logits = self.trainer.model(torch.cat([torch.tensor(prompt), tokens])[None]).logits[0]
            logps = logits[len(prompt) - 1 : -1].log_softmax(-1).gather(1, tokens[:, None]).squeeze(1)
            off = logps + 0.5 * torch.randn(length, generator=self.random)
            completions.append(tokens.tolist())
            # vLLM gives None where it found no number
            logprobs.append([[None if row == 1 and place == 2 else float(x)] for place, x in enumerate(off)])
        return prompts, completions, logprobs, None


def run(folder: Path, out: Path, **fields: Any) -> tuple[GRPOTrainer, list[int]]:
    trainer = make(folder, out, lora=True, **fields)
    trainer.use_vllm, trainer._last_loaded_step = True, -1
    trainer.vllm_generation = Sampler(trainer)
    calls: list[int] = []
    trainer.model.get_input_embeddings().register_forward_hook(lambda _, inputs, out: calls.append(inputs[0].numel()))
    trainer.train()
    return trainer, calls


@pytest.mark.parametrize("mode", CORRECTIONS)
@pytest.mark.parametrize("own", [False, True], ids=["native", "own"])
@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_same_weights_and_metrics_without_the_extra_pass(
    mode: str, own: bool, beta: float, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {
        "vllm_importance_sampling_mode": mode, "vllm_importance_sampling_clip_max": 1.5,
        "vllm_importance_sampling_clip_min": 0.4, "beta": beta, "loss_type": "grpo",
        **({"kl_estimator": "k3", "use_bias_correction_kl": False} if own else {"use_bias_correction_kl": False}),
    }  # fmt: skip
    ours, calls = run(tiny_folder, tmp_path / "ours", **fields)
    monkeypatch.setattr(SamplerTrainer, "_needs_no_old_pass", lambda self: False)
    theirs, more_calls = run(tiny_folder, tmp_path / "theirs", **fields)
    assert largest_difference(weights(ours.model), weights(theirs.model)) < 1e-7
    # Two steps; the sampler itself takes a pass a row
    assert len(more_calls) == len(calls) + 2
    for one, other in zip(ours.state.log_history, theirs.state.log_history, strict=True):
        if "loss" not in one:
            continue
        assert one.keys() == other.keys()
        for name in ("loss", "grad_norm", *(f"sampling/{metric}" for metric in METRICS)):
            assert one[name] == pytest.approx(other[name], rel=1e-4, abs=1e-6), name
    largest = [row.get("sampling/importance_sampling_ratio/max", 0) for row in ours.state.log_history]
    assert max(largest) > 1.2 or mode == "sequence_mask"


def test_a_pass_in_another_order_is_refused(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = GRPOTrainer._generate_and_score_completions

    def reference_first(self: GRPOTrainer, inputs: Any) -> Any:
        with torch.no_grad():
            self._get_per_token_logps_and_entropies(self.model, torch.ones(4, 6).long(), torch.ones(4, 6).long(), 3)
        return inner(self, inputs)

    monkeypatch.setattr(GRPOTrainer, "_generate_and_score_completions", reference_first)
    with pytest.raises(RuntimeError, match="scores completions in another order than grpo_ext expects"):
        run(tiny_folder, tmp_path)


@pytest.mark.parametrize("name", ["old_per_token_logps", "sampling_per_token_logps"])
def test_a_renamed_column_is_refused(
    name: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = GRPOTrainer._generate_and_score_completions

    def renamed(self: GRPOTrainer, inputs: Any) -> Any:
        output = inner(self, inputs)
        output[f"new_{name}"] = output.pop(name)
        return output

    monkeypatch.setattr(GRPOTrainer, "_generate_and_score_completions", renamed)
    with pytest.raises(RuntimeError, match="or set vllm_importance_sampling_correction=False"):
        run(tiny_folder, tmp_path)


def test_a_pass_that_is_somebody_elses_stays(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = SamplerTrainer._get_per_token_logps_and_entropies
    given: list[torch.Tensor] = []

    def own(self: SamplerTrainer, *args: Any, **kwargs: Any) -> Any:
        if not self._leaves_out_next_pass:
            return inner(self, *args, **kwargs)
        given.append(torch.full((len(args[1]), args[3]), -2.0))
        return given[-1], None, None

    monkeypatch.setattr(SamplerTrainer, "_get_per_token_logps_and_entropies", own)
    trainer, _ = run(tiny_folder, tmp_path)
    # What TRL made of it was no placeholder, and is what the loss gets
    assert given and trainer._buffered_inputs[0]["old_per_token_logps"].eq(-2.0).all()


def test_several_updates_keep_the_pass(tiny_folder: Path, tmp_path: Path) -> None:
    trainer, _ = run(tiny_folder, tmp_path, num_iterations=2)
    buffered = trainer._buffered_inputs
    assert buffered is not None and "old_per_token_logps" in buffered[0]


def test_corrections_by_hand() -> None:
    logps = torch.log(torch.tensor([[0.5, 0.2, 0.9], [0.1, 0.3, 0.5]]))
    sampling = torch.log(torch.tensor([[0.25, 0.4, 0.1], [0.1, 0.1, 0.5]]))
    sampling[1, 2] = torch.nan
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])

    def check(mode: str, low: float | None, high: float | None, wanted: list[list[float]]) -> None:
        found = sampler_correction(logps, sampling, mask, mode, low, high)
        torch.testing.assert_close(found, torch.tensor(wanted))

    check("token_truncate", None, 1.5, [[1.5, 0.5, 1.0], [1.0, 1.5, 1.0]])
    check("token_truncate", 0.6, None, [[2.0, 0.6, 1.0], [1.0, 3.0, 1.0]])
    check("token_mask", 0.6, 2.5, [[2.0, 0.0, 1.0], [1.0, 0.0, 1.0]])
    check("sequence_truncate", None, 2.0, [[1.0], [2.0]])
    check("sequence_mask", None, 2.0, [[1.0], [0.0]])
    check("sequence_mask", None, None, [[1.0], [3.0]])
