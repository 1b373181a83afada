"""The reference policy is the trained adapter as it is now, whatever it sits on."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from grpo_ext.models import tiny_policy
from grpo_ext.models.reference import REFERENCE, reference_weights, renew_reference


@torch.no_grad()
def logits(policy: torch.nn.Module) -> torch.Tensor:
    return policy(input_ids=torch.arange(4, 24)[None]).logits


@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": ["q_proj"]},
        {"target_modules": ["q_proj"], "use_dora": True},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["embed_tokens"]},
    ],
    ids=str,
)
def test_the_reference_becomes_the_policy(fields: dict) -> None:
    policy = get_peft_model(tiny_policy()[0], LoraConfig(r=2, **fields)).eval()
    generator = torch.Generator().manual_seed(0)
    assert reference_weights(policy) == {}
    for _ in range(2):
        with torch.no_grad():
            for weight in policy.parameters():
                if weight.requires_grad:
                    weight.add_(0.3 * torch.randn(weight.shape, generator=generator))
        before = {name for name, weight in policy.named_parameters() if weight.requires_grad}
        trained = logits(policy)
        renew_reference(policy)
        assert {name for name, weight in policy.named_parameters() if weight.requires_grad} == before
        assert {name.replace(REFERENCE, "default") for name in reference_weights(policy)} == before
        policy.set_adapter(REFERENCE)
        assert torch.equal(logits(policy), trained)
        policy.set_adapter("default")
