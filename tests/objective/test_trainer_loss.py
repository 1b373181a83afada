"""The trainer hands its own objective what TRL's loss reads: same loss, same gradients, same logged values."""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from trl import GRPOTrainer

from grpo_ext import GRPOExtConfig, GRPOExtTrainer
from grpo_ext.objective import TRL_LOSS_TYPES

ROWS, TOKENS = 4, 6
# Values that TRL logs and ours need not
THEIRS_ALONE = {"policy_loss", "entropy_coef", "vespo/phi_seq_mean"}


def make_inputs() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(11)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    logps = -normal(ROWS, TOKENS).abs()
    return {
        "prompt_ids": torch.zeros(ROWS, 2, dtype=torch.long),
        "prompt_mask": torch.ones(ROWS, 2, dtype=torch.long),
        "completion_ids": torch.zeros(ROWS, TOKENS, dtype=torch.long),
        "completion_mask": torch.tensor([[1] * 6, [1] * 4 + [0] * 2, [1, 1, 0, 0, 0, 0], [1] * 6]),
        "tool_mask": torch.tensor([1, 1, 0, 1, 1, 1]).expand(ROWS, TOKENS),
        "advantages": torch.tensor([1.25, -0.75, -1.5, 0.5], dtype=torch.float64),
        "logps": logps,
        "old_per_token_logps": logps + 0.5 * normal(ROWS, TOKENS),
        "ref_per_token_logps": logps + 0.5 * normal(ROWS, TOKENS),
        "entropies": normal(ROWS, TOKENS).abs(),
        "num_items_in_batch": torch.tensor(61.0, dtype=torch.float64),
    }


def make_trainer(config: GRPOExtConfig, training: bool) -> GRPOExtTrainer:
    """A trainer with no model and only the attributes that the losses read."""
    trainer = GRPOExtTrainer.__new__(GRPOExtTrainer)
    trainer.args = config
    trainer.model = SimpleNamespace(training=training)
    trainer.accelerator = SimpleNamespace(
        num_processes=2,
        sync_gradients=True,
        gather=lambda x: x,
        reduce=lambda x, reduction: x,
        pad_across_processes=lambda x, **_: x,
    )
    for name in (
        "loss_type",
        "beta",
        "use_vllm",
        "vllm_importance_sampling_correction",
        "importance_sampling_level",
        "max_completion_length",
        "top_entropy_quantile",
        "off_policy_mask_threshold",
        "entropy_coef",
        "num_generations",
    ):
        setattr(trainer, name, getattr(config, name))
    trainer.num_generations_eval = config.num_generations
    trainer.epsilon_low, trainer.epsilon_high = config.epsilon, config.epsilon_high
    trainer.use_adaptive_entropy = trainer.aux_loss_enabled = False
    trainer._entropy_bonus_enabled = config.entropy_coef != 0.0
    trainer.current_gradient_accumulation_steps = 3
    trainer._objective, trainer._kl_of_step = config.objective(), 0.0
    trainer._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
    return trainer


def run(trainer: GRPOExtTrainer, loss_of: Any, inputs: dict[str, Tensor]) -> tuple[list[Tensor], dict[str, list]]:
    leaves = [inputs[name].clone().requires_grad_() for name in ("logps", "entropies")]
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (*leaves, None)
    mode = "train" if trainer.model.training else "eval"
    trainer._metrics[mode].clear()
    loss = loss_of(trainer, None, inputs)
    grads = torch.autograd.grad(loss, leaves, allow_unused=True)
    values = [loss.detach(), *(torch.zeros(()) if grad is None else grad for grad in grads)]
    return values, dict(trainer._metrics[mode])


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    "fields",
    [
        {"beta": 0.04},
        {"beta": 0.04, "importance_sampling_level": "sequence", "entropy_coef": 0.02},
        {"top_entropy_quantile": 0.5, "off_policy_mask_threshold": 0.0},
    ],
    ids=["token", "sequence", "masks"],
)
@pytest.mark.parametrize("loss_type", TRL_LOSS_TYPES)
def test_trainer_with_an_own_objective_equals_trl(
    tmp_path: Any, loss_type: str, fields: dict[str, Any], training: bool
) -> None:
    config = GRPOExtConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        bf16=False,
        report_to="none",
        loss_type=loss_type,
        kl_in="loss",  # TRL's own choice, named, makes ours run
        epsilon_high=1.3 if loss_type == "cispo" else 0.3,
        num_generations=2,
        per_device_train_batch_size=ROWS,
        gradient_accumulation_steps=3,
        steps_per_generation=6,
        max_completion_length=9,
        **fields,
    )
    assert config.uses_own_objective
    trainer, inputs = make_trainer(config, training), make_inputs()
    expected, logged = run(trainer, GRPOTrainer._compute_loss, inputs)
    found, own_logged = run(trainer, GRPOExtTrainer._compute_loss, inputs)
    assert trainer._losses == 1
    for theirs, ours in zip(expected, found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    assert set(logged) - set(own_logged) <= THEIRS_ALONE
    for name in set(logged) & set(own_logged):
        assert own_logged[name] == pytest.approx(logged[name], rel=1e-6, abs=1e-9), name
