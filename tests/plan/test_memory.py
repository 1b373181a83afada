"""The estimate of memory: its parts by hand, and its sum against what a process really took."""

import argparse
import multiprocessing
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from grpo_ext.bench.rollouts import synthetic
from grpo_ext.bench.shapes import SHAPES, random_model
from grpo_ext.bench.worker import serve
from grpo_ext.models.policy import add_lora
from grpo_ext.plan.memory import HEAD_COPIES, Load, estimate, generation, peak, trained, training, weights
from grpo_ext.plan.shape import find_shape
from grpo_ext.scoring.attention import use_tree_attention
from grpo_ext.scoring.head import CHUNK_LOGITS
from grpo_ext.scoring.scorer import SCORERS, give_hidden_states, make_head


@pytest.mark.parametrize("name", SHAPES)
def test_weights_are_counted_to_the_last_norm(name: str) -> None:
    shape = find_shape(name)
    model = random_model(name, torch.bfloat16, "meta")
    # Qwen's biases and norms of heads are left out
    assert shape.linear + shape.other == pytest.approx(sum(w.numel() for w in model.parameters()), rel=2e-4)
    if name == "small":
        adapted = add_lora(model, 16)
        assert shape.adapter(16) == sum(w.numel() for n, w in adapted.named_parameters() if "lora_" in n)


def test_packs() -> None:
    load = Load(micro=4, accumulation=4, group=8, prompt_tokens=100, completion_tokens=50)
    # 16 rows are two prompts: 200 + 800 tokens, a padded micro-batch has 600 and a pack a quarter more
    assert load.packs == (2, 500)
    assert replace(load, scoring_tokens=1000).packs == (1, 1000)
    assert replace(load, shares=False).packs == (4, 300)
    assert replace(load, tree=False).packs == (4, 600)
    # 700 tokens are more than the 600 of a padded micro-batch, and no more than a quarter more
    assert replace(load, accumulation=3, group=12).packs == (1, 700)


def test_parts_move_as_they_should() -> None:
    shape, load = find_shape("qwen2.5-0.5b"), Load(prompt_tokens=100, completion_tokens=100, device="cuda")
    assert weights(shape, replace(load, four_bit=True)) < 0.6 * weights(shape, load)
    assert training(shape, replace(load, checkpointing=True)) < 0.5 * training(shape, load)
    assert trained(shape, load)["optimiser"] == 2 * trained(shape, load)["adapter"]
    assert trained(shape, replace(load, optimizer="adamw_8bit"))["optimiser"] == trained(shape, load)["adapter"] / 2
    assert trained(shape, replace(load, reference=True))["reference"] == trained(shape, load)["adapter"]
    assert "adapter" not in trained(shape, replace(load, rank=0))
    assert generation(shape, replace(load, generates=False)) == 0
    parts = estimate(shape, load)
    phases = ("training pass", "generation")
    held = sum(value for name, value in parts.items() if name not in phases)
    assert peak(parts) == held + max(parts[name] for name in phases)


CASES = {
    "tree": {"scoring": "tree", "group_size": 16, "micro_batch": 16, "prompts": 2},
    "padded": {"scoring": "padded", "group_size": 8, "micro_batch": 8, "prompts": 2},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_estimate_against_a_measured_step(name: str, tmp_path: Path) -> None:
    """The step's peak above the model, within the distance that docs/how-to/doctor.md states."""
    args = argparse.Namespace(
        model="small", dtype="bfloat16", lora_r=16, device="cpu", beta=0.04, gradient_checkpointing=False, repeats=1,
        completion_cap=256, prompt_length=120, **CASES[name],
    )  # fmt: skip
    # All completions at the cap, which is what a plan counts with
    rollouts = synthetic(args.prompts, args.group_size, 120, 10**6, 256, 0.0, 8192, 0)
    assert {len(row) for row in rollouts.completions} == {256}
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=("ours", args, rollouts, str(tmp_path), there), daemon=True)
    process.start()
    there.close()
    assert here.recv() == "ready"
    found = []
    for _ in range(3):
        here.send("go")
        found.append(here.recv()["memory"])
    process.join()
    # The second step counts floating-point work, which takes memory too
    measured = max(found[0], found[2])
    load = Load(
        dtype="bfloat16", rank=16, reference=True, micro=args.micro_batch, group=args.group_size,
        accumulation=args.prompts * args.group_size // args.micro_batch, prompt_tokens=120,
        completion_tokens=256, tree=args.scoring == "tree", generates=False,
    )  # fmt: skip
    shape = find_shape("small")
    # Gradients and moments are made in the first step, so they are part of what was measured
    expected = training(shape, load) + trained(shape, load)["gradients"] + trained(shape, load)["optimiser"]
    assert expected == pytest.approx(measured, rel=0.25)


@pytest.mark.parametrize("scorer", ["tree", "padded"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_what_a_pass_keeps_is_counted(scorer: str, dtype: str) -> None:
    """The tensors that torch keeps for the backward pass, each storage once, as `training` counts them."""
    model = random_model("small", getattr(torch, dtype), "cpu")
    give_hidden_states(model)
    use_tree_attention(model)
    policy = add_lora(model, 16).train()
    rows, prompt, completion = 4, 24, 40
    ids = torch.randint(5, 5000, (rows, prompt + completion), generator=torch.Generator().manual_seed(0))
    ids[:, :prompt] = ids[:1, :prompt]
    own = {weight.untyped_storage().data_ptr() for weight in policy.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"),
    ):
        head = make_head(model, 1.0)
        SCORERS[scorer](policy, head, ids, torch.ones_like(ids), completion, True, False)
    held = sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in own)
    # Copies of the adapter's own weights in 16 bit are not counted per token
    held -= 2 * find_shape("small").adapter(16) if dtype == "bfloat16" else 0
    load = Load(
        dtype=dtype, autocast=dtype == "bfloat16", micro=rows, group=rows, prompt_tokens=prompt,
        completion_tokens=completion, tree=scorer == "tree", device="cuda",
    )  # fmt: skip
    shape = find_shape("small")
    chunk = HEAD_COPIES * 4 * min(CHUNK_LOGITS, load.scored * shape.vocabulary)
    assert training(shape, load) - chunk == pytest.approx(held, rel=0.03)
