"""Groups by search in a run: which rows arrive, what the loss makes of them, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import PROMPTS, largest_difference, make, policy, weights

from grpo_ext import GRPOExtTrainer
from grpo_ext.rollouts.strategies import SEARCHES

UNSEARCHED: dict[str, dict[str, Any]] = {
    "half the beams": {"group_generation": "beam", "num_beams": 3},
    "no samples left": {"group_generation": "beam+sampling", "num_beams": 4},
    "parts": {"group_generation": "diverse_beam", "num_beam_groups": 3},
    "top_p": {"group_generation": "stochastic_beam", "top_p": 0.9},
    "top_k": {"group_generation": "stochastic_beam", "top_k": 20},
    "baseline": {"group_generation": "stochastic_beam", "advantage_baseline": "mean"},
    "scale": {"group_generation": "stochastic_beam"},
    "TRL's beams": {"generation_kwargs": {"num_beams": 4}},
    "a word": {"group_generation": "beams"},
}
MESSAGES = {
    "half the beams": "`num_beams` is 3; .* at least 4",
    "no samples left": "`num_beams` is 4; .* below 4",
    "parts": "`num_beam_groups` is 3; it must divide the 4 beams",
    "scale": "`scale_rewards` is 'group', but the advantages of group_generation='stochastic_beam' .*='none'",
    "top_p": "`top_p` is 0.9, but the weights of group_generation='stochastic_beam'",
    "top_k": "`top_k` is 20",
    "baseline": "`advantage_baseline` is 'mean'",
    "TRL's beams": "num_beams=4, .* every row of a group the same completion; use group_generation='beam'",
    "a word": "`group_generation` is 'beams'; it must be one of: sampling, beam, ",
}


class Seen:
    """A reward that keeps what it was given."""

    __name__ = "seen"

    def __init__(self) -> None:
        self.calls: list[tuple[list[str], list[tuple[int, ...]]]] = []

    def __call__(self, prompts: list[str], completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
        self.calls.append((prompts, [tuple(row) for row in completion_ids]))
        return [sum(row) % 11 / 11 for row in completion_ids]


@pytest.mark.parametrize("strategy", SEARCHES)
def test_a_group_is_the_search_of_its_prompt(strategy: str, tiny_folder: Path, tmp_path: Path) -> None:
    runs = []
    for name in ("one", "two"):
        seen = Seen()
        fields = {"group_generation": strategy, "max_steps": 3, "scale_rewards": "none", "learning_rate": 0.0}
        if strategy == "diverse_beam":
            fields |= {"num_beam_groups": 2, "diversity_penalty": 5.0}
        trainer = make(tiny_folder, tmp_path / name, reward_funcs=seen, **fields)
        trainer.train()
        runs.append(seen.calls)
    assert runs[0] == runs[1] and len(runs[0]) == 3
    for prompts, rows in runs[0]:
        for start in range(0, len(rows), 4):
            assert len(set(prompts[start : start + 4])) == 1
            assert len(set(rows[start : start + 4])) == 4
    # The first of a beam search beats greedy decoding or is it
    prompts, rows = runs[0][0]
    if strategy == "beam":
        model = policy(tiny_folder)
        for start in (0, 4):
            text = trainer.processing_class(prompts[start])["input_ids"]
            greedy = model.generate(torch.tensor([text]), max_new_tokens=8, do_sample=False)[0, len(text) :].tolist()
            best = max(log_probability(model, text, row) / len(row) for row in rows[start : start + 4])
            assert best >= log_probability(model, text, tuple(greedy)) / len(greedy) - 1e-5


@torch.no_grad()
def log_probability(model: Any, prompt: list[int], completion: tuple[int, ...]) -> float:
    logits = model(torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
    return float(logits.log_softmax(-1).gather(1, torch.tensor(completion)[:, None]).sum())


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_inclusion_weights_reach_the_gradient(lora: bool, tiny_folder: Path, tmp_path: Path) -> None:
    fields = {
        "group_generation": "stochastic_beam", "loss_type": "luspo", "scale_rewards": "none", "beta": 0.1,
        "use_bias_correction_kl": False, "max_steps": 1, "learning_rate": 1.0, "max_grad_norm": 0.0,
        "num_generations": 8, "lr_scheduler_type": "constant", "max_completion_length": 3,
    }  # fmt: skip
    trainer = make(tiny_folder, tmp_path, reward_funcs=Seen(), lora=lora, **fields)
    before = weights(trainer.model)
    trainer.train()
    buffered = trainer._buffered_inputs
    assert buffered is not None
    column = {name: torch.cat([part[name] for part in buffered]) for name in ("log_weights", "completion_logps")}
    # Sampled as the model stands now, hence weights below 1 and different from each other
    assert (column["log_weights"] < 0.1).all() and column["log_weights"].unique().numel() > 1

    model = policy(tiny_folder, lora)
    loss = torch.zeros(())
    for part in buffered:
        for row in range(len(part["completion_ids"])):
            loss = loss + row_loss(model, part, row) / 8
    loss.backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    after = weights(trainer.model)
    moved = {name: before[name] - after[name] for name in gradients}
    size = max(float(gradient.abs().max()) for gradient in gradients.values())
    assert size > 1e-3 and largest_difference(moved, gradients) < 2e-5 * max(size, 1.0)


def row_loss(model: Any, part: dict[str, torch.Tensor], row: int) -> torch.Tensor:
    """w_i Σ_t (−A_i ratio_t + β k3_t) by hand; the ratio is 1 and the reference is the policy as it was loaded."""
    prompt = part["prompt_ids"][row][part["prompt_mask"][row].bool()]
    completion = part["completion_ids"][row][part["completion_mask"][row].bool()]
    logits = model(torch.cat([prompt, completion])[None]).logits[0, len(prompt) - 1 : -1]
    logps = logits.log_softmax(-1).gather(1, completion[:, None]).squeeze(1)
    x = part["ref_per_token_logps"][row][: len(completion)] - logps
    kl = torch.exp(x) - x - 1
    weight = 8 * torch.exp(part["log_weights"][row])
    return weight * (0.1 * kl - part["advantages"][row] * torch.exp(logps - logps.detach())).sum()


def test_evaluation_samples(tiny_folder: Path, tmp_path: Path) -> None:
    seen = Seen()
    trainer = make(tiny_folder, tmp_path, reward_funcs=seen, group_generation="beam", num_generations_eval=4)
    trainer.evaluate(eval_dataset=trainer.train_dataset.select([0]))
    trainer.evaluate(eval_dataset=trainer.train_dataset.select([0]))
    # Beams of an unchanged policy would come again
    assert seen.calls[0][0] == [PROMPTS[0]] * 4 and seen.calls[0][1] != seen.calls[1][1]


@pytest.mark.parametrize("case", UNSEARCHED)
def test_refusals(case: str, tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=MESSAGES[case]):
        make(tiny_folder, tmp_path, **UNSEARCHED[case])


def test_tools_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    class WithRollouts(GRPOExtTrainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, rollout_func=lambda prompts, trainer: {}, **kwargs)

    with pytest.raises(ValueError, match="a completion is made in turns"):
        make(tiny_folder, tmp_path, cls=WithRollouts, group_generation="beam")


def test_a_model_that_cannot_be_searched_is_named(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("grpo_ext.rollouts.local.unsupported", lambda config: "has a sliding window of 4096")
    with pytest.raises(ValueError, match="LlamaForCausalLM has a sliding window of 4096; use group_generation"):
        make(tiny_folder, tmp_path, group_generation="beam")
    with caplog.at_level("INFO", "grpo_ext"):
        make(tiny_folder, tmp_path).train()
    assert "transformers' own loop, because LlamaForCausalLM has a sliding window of 4096" in caplog.text


def test_the_log_says_that_beams_are_not_samples(
    tiny_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "grpo_ext"):
        make(tiny_folder, tmp_path, group_generation="diverse_beam", num_beam_groups=2)
    assert "beams are not samples of the policy" in caplog.text
