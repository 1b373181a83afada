"""The objective that a config composes equals TRL's own loss, for every native loss type, in value and gradient."""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from trl import GRPOTrainer

from grpo_ext import GRPOExtConfig
from grpo_ext.objective import TRL_LOSS_TYPES, Batch
from grpo_ext.ops.aggregation import Window

ROWS, TOKENS, MAX_LENGTH = 4, 7, 11
# (gradient_accumulation_steps, steps_per_generation, accumulation steps of the current window)
WINDOWS = {"one": (1, None, 1), "three": (3, None, 3), "reused": (2, 6, 2), "short_last": (3, 6, 2)}


def make_config(tmp_path: Any, **fields: Any) -> GRPOExtConfig:
    fixed = {
        "output_dir": str(tmp_path),
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "per_device_train_batch_size": ROWS,
        "num_generations": 2,
        "max_completion_length": MAX_LENGTH,
        "epsilon": 0.2,
        # The upper bound is 1.3 for all: CISPO takes its cap as it is. The ratios of the batch fall on both sides.
        "epsilon_high": 1.3 if fields.get("loss_type") == "cispo" else 0.3,
    }
    return GRPOExtConfig(**{**fixed, **fields})


def make_batch(sampling: str | None = None) -> dict[str, Tensor]:
    """Four completions with advantages of both signs and 0, ragged masks, one of them masked as a whole."""
    draw = torch.Generator().manual_seed(5)
    logps = -3 * torch.rand(ROWS, TOKENS, generator=draw, dtype=torch.float64)
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [1, 1, 0, 0, 1, 1, 0], [0] * 7])
    inputs = {
        "prompt_ids": torch.zeros(ROWS, 2, dtype=torch.long),
        "prompt_mask": torch.ones(ROWS, 2, dtype=torch.long),
        "completion_ids": torch.zeros(ROWS, TOKENS, dtype=torch.long),
        "completion_mask": mask,
        "advantages": torch.tensor([1.25, -0.75, -1.5, 0.5], dtype=torch.float64),
        "logps": logps,
        "old_per_token_logps": logps + 0.5 * torch.randn(ROWS, TOKENS, generator=draw, dtype=torch.float64),
        "ref_per_token_logps": logps + 0.7 * torch.randn(ROWS, TOKENS, generator=draw, dtype=torch.float64),
        "entropies": 2 * torch.rand(ROWS, TOKENS, generator=draw, dtype=torch.float64),
        # Tokens of the generation batch on all processes
        "num_items_in_batch": torch.tensor(61.0, dtype=torch.float64),
    }
    if sampling is not None:
        shape = {"token": (ROWS, TOKENS), "sequence": (ROWS, 1)}[sampling]
        inputs["importance_sampling_ratio"] = 0.5 + torch.rand(shape, generator=draw, dtype=torch.float64)
    return inputs


def make_trainer(
    config: GRPOExtConfig, inputs: dict[str, Tensor], parts: int, processes: int = 1, training: bool = True
) -> GRPOTrainer:
    """A trainer with no model and only the attributes that TRL's loss reads."""
    trainer = GRPOTrainer.__new__(GRPOTrainer)
    trainer.args = config
    trainer.model = SimpleNamespace(training=training)
    trainer.accelerator = SimpleNamespace(
        num_processes=processes,
        sync_gradients=True,
        gather=lambda x: x,
        reduce=lambda x, reduction: x,
        pad_across_processes=lambda x, **_: x,
    )
    trainer.loss_type, trainer.beta, trainer.use_vllm = config.loss_type, config.beta, config.use_vllm
    trainer.vllm_importance_sampling_correction = config.vllm_importance_sampling_correction
    trainer.importance_sampling_level = config.importance_sampling_level
    trainer.epsilon_low, trainer.epsilon_high = config.epsilon, config.epsilon_high
    trainer.max_completion_length = config.max_completion_length
    trainer.top_entropy_quantile = config.top_entropy_quantile
    trainer.off_policy_mask_threshold = config.off_policy_mask_threshold
    trainer.entropy_coef, trainer.use_adaptive_entropy = config.entropy_coef, False
    trainer._entropy_bonus_enabled = config.entropy_coef != 0.0
    trainer.aux_loss_enabled = False
    trainer.current_gradient_accumulation_steps = parts
    trainer._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (inputs["logps"], inputs["entropies"], None)
    return trainer


def trainer_loss(trainer: GRPOTrainer, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """TRL's loss with its gradients to log-probabilities and entropies."""
    logps, entropies = (inputs[name].clone().requires_grad_() for name in ("logps", "entropies"))
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (logps, entropies, None)
    loss = GRPOTrainer._compute_loss(trainer, None, inputs)
    return loss.detach(), *_gradients(loss, logps, entropies)


def composed_loss(trainer: GRPOTrainer, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Our loss with its gradients to log-probabilities and entropies."""
    config, mask = trainer.args, inputs["completion_mask"] * inputs.get("tool_mask", 1)
    logps, entropies = (inputs[name].clone().requires_grad_() for name in ("logps", "entropies"))
    keep = entropy_mask = None
    if config.top_entropy_quantile < 1.0:
        keep = entropy_mask = trainer.get_high_entropy_mask(entropies, mask, 1 - config.top_entropy_quantile)
    if config.off_policy_mask_threshold is not None:
        on_policy = trainer.get_off_policy_mask(
            inputs["advantages"].unsqueeze(1),
            logps,
            inputs["old_per_token_logps"],
            mask,
            config.off_policy_mask_threshold,
        )
        keep = on_policy if keep is None else keep * on_policy
    batch = Batch(
        logps=logps,
        advantages=inputs["advantages"],
        mask=mask,
        old_logps=inputs.get("old_per_token_logps"),
        ref_logps=inputs["ref_per_token_logps"],
        entropies=entropies,
        sampling_ratio=inputs.get("importance_sampling_ratio"),
        keep=keep,
        entropy_mask=entropy_mask,
    )
    training = trainer.model.training
    parts = trainer.current_gradient_accumulation_steps if training else 1
    share = parts / config.steps_per_generation if training else 1.0
    window = Window(
        rows=ROWS * parts,
        tokens=inputs["num_items_in_batch"] / trainer.accelerator.num_processes * share,
        parts=parts,
        group_size=config.num_generations,
        max_completion_length=MAX_LENGTH,
    )
    loss, _ = config.objective()(batch, window, config.beta)
    return loss.detach(), *_gradients(loss, logps, entropies)


def _gradients(loss: Tensor, *leaves: Tensor) -> list[Tensor]:
    found = torch.autograd.grad(loss, leaves, allow_unused=True)
    return [torch.zeros_like(leaf) if grad is None else grad for leaf, grad in zip(leaves, found, strict=True)]


def assert_parity(trainer: GRPOTrainer, inputs: dict[str, Tensor]) -> None:
    expected, found = trainer_loss(trainer, inputs), composed_loss(trainer, inputs)
    for name, theirs, ours in zip(
        ("loss", "gradient of logps", "gradient of entropies"), expected, found, strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")
    assert expected[1].abs().max() > 1e-4, "the case compares zero with zero"


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("delta", [None, 1.5])
@pytest.mark.parametrize("beta, corrected", [(0.0, False), (0.04, False), (0.04, True)])
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss_type", TRL_LOSS_TYPES)
def test_loss_and_gradient(
    tmp_path: Any, loss_type: str, level: str, beta: float, corrected: bool, delta: float | None, window: str
) -> None:
    accumulation, per_generation, parts = WINDOWS[window]
    config = make_config(
        tmp_path,
        loss_type=loss_type,
        importance_sampling_level=level,
        beta=beta,
        use_bias_correction_kl=corrected,
        delta=delta,
        gradient_accumulation_steps=accumulation,
        steps_per_generation=per_generation,
    )
    assert not config.uses_own_objective and not config.uses_own_advantages
    inputs = make_batch()
    assert_parity(make_trainer(config, inputs, parts), inputs)


@pytest.mark.parametrize(
    "fields",
    [
        {"entropy_coef": 0.03},
        {"top_entropy_quantile": 0.4},
        {"top_entropy_quantile": 0.4, "entropy_coef": 0.03, "beta": 0.04},
        {"off_policy_mask_threshold": 0.0},
        {"off_policy_mask_threshold": 0.0, "top_entropy_quantile": 0.6, "beta": 0.04},
    ],
    ids=lambda fields: "-".join(fields),
)
@pytest.mark.parametrize("loss_type", TRL_LOSS_TYPES)
def test_switched_off_tokens_and_the_entropy_bonus(tmp_path: Any, loss_type: str, fields: dict[str, Any]) -> None:
    config = make_config(tmp_path, loss_type=loss_type, gradient_accumulation_steps=3, **fields)
    inputs = make_batch()
    assert_parity(make_trainer(config, inputs, 3), inputs)


@pytest.mark.parametrize("sampling", ["token", "sequence"])
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss_type", TRL_LOSS_TYPES)
def test_correction_for_the_sampler(tmp_path: Any, loss_type: str, level: str, sampling: str) -> None:
    config = make_config(
        tmp_path, loss_type=loss_type, importance_sampling_level=level, beta=0.04, gradient_accumulation_steps=3
    )
    # The flag alone, set late, because TRL's config may look for the sampler's package
    config.use_vllm = config.vllm_importance_sampling_correction = True
    inputs = make_batch(sampling)
    trainer = make_trainer(config, inputs, 3)
    assert_parity(trainer, inputs)
    without = {name: value for name, value in inputs.items() if name != "importance_sampling_ratio"}
    assert (composed_loss(trainer, inputs)[0] - composed_loss(trainer, without)[0]).abs() > 1e-4


@pytest.mark.parametrize("loss_type", TRL_LOSS_TYPES)
def test_missing_old_logps_tool_tokens_processes_and_evaluation(tmp_path: Any, loss_type: str) -> None:
    config = make_config(tmp_path, loss_type=loss_type, beta=0.04, gradient_accumulation_steps=3, entropy_coef=0.01)
    on_policy = {name: value for name, value in make_batch().items() if name != "old_per_token_logps"}
    assert_parity(make_trainer(config, on_policy, 3), on_policy)
    tools = {**make_batch(), "tool_mask": torch.tensor([1, 0, 0, 1, 1, 1, 1]).expand(ROWS, TOKENS)}
    assert_parity(make_trainer(config, tools, 3), tools)
    assert_parity(make_trainer(config, make_batch(), 3, processes=4), make_batch())
    assert_parity(make_trainer(config, make_batch(), 3, training=False), make_batch())


def test_ratios_of_the_batch_fall_on_both_sides_of_every_bound() -> None:
    inputs = make_batch()
    ratio = torch.exp(inputs["logps"] - inputs["old_per_token_logps"])[inputs["completion_mask"].bool()]
    for bound in (0.8, 1.3, 1.5):
        assert ratio.min() < bound < ratio.max()
