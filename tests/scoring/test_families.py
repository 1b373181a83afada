"""Model families over the tree against their plain forward pass; and those that the tree must not serve."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from families import SERVED, make_family
from grpo_ext.scoring.attention import unsupported, use_tree_attention
from grpo_ext.scoring.scorer import give_hidden_states, make_head, score_tree


def rows() -> tuple[torch.Tensor, torch.Tensor, int]:
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 50, (5, 12), generator=random)
    ids[:3, :6], ids[1, 6:9] = ids[0, :6], ids[0, 6:9]
    mask = torch.ones_like(ids)
    mask[3:, :2], mask[1, 10:], mask[4, 7:] = 0, 0, 0
    return ids * mask, mask, 6


@pytest.mark.parametrize("family", SERVED)
def test_the_tree_equals_the_plain_forward(family: str) -> None:
    model = make_family(family)
    ids, mask, width = rows()
    # Rows one at a time: padding would shift the positions of models that take them as they come
    wanted = torch.zeros(5, width)
    for row in range(5):
        real = ids[row][mask[row].bool()]
        length = int(mask[row, -width:].sum())
        log_probs = model(real[None]).logits[0, -length - 1 : -1].float().log_softmax(-1)
        wanted[row, :length] = log_probs.gather(-1, real[-length:, None]).squeeze(-1)
    factors = torch.randn(5, width, generator=torch.Generator().manual_seed(1))
    names = [name for name, _ in model.named_parameters()]
    exact = torch.autograd.grad((wanted * factors).sum(), list(model.parameters()))

    assert unsupported(model.config) is None
    give_hidden_states(model)
    use_tree_attention(model)
    found, _ = score_tree(model, make_head(model, 1.0), ids, mask, width)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-4)
    ours = torch.autograd.grad((found * factors).sum(), list(model.parameters()))
    size = torch.cat([gradient.flatten() for gradient in exact]).norm()
    for name, one, other in zip(names, ours, exact, strict=True):
        assert (one - other).norm() <= 1e-5 * size, name


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text", "gpt_oss", "bloom", "qwen3_next", "mpt"])
def test_other_families_are_left_to_padded_rows(family: str) -> None:
    config = AutoConfig.for_model(family)
    config._attn_implementation = "sdpa"
    model_class = AutoModelForCausalLM._model_mapping[type(config)]
    takes_attention_from_outside = model_class._supports_attention_backend
    assert unsupported(config) is not None or not takes_attention_from_outside
