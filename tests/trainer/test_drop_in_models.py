"""Models that are more than a stack of layers over text: images, and experts with a loss of their own."""

from pathlib import Path
from typing import Any

import pytest
import torch
from drop_in_runs import SPLIT, WHOLE, assert_same, run
from PIL import Image
from tiny_runs import PROMPTS, STOCK, early_letters, prompts
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    Qwen3MoeConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from trl import GRPOTrainer

from grpo_ext import GRPOExtTrainer
from grpo_ext.models import tiny_tokenizer

SIZE, PATCH = 8, 4
IMAGE = 100  # number of the token
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.1,
}
TOKENS = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}


def seeing(model: PreTrainedModel) -> dict[str, Any]:
    """A processor, and prompts with a picture each."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.chat_template = None
    template = (
        "{% for message in messages %}{{ message['role'] }}{% for part in message['content'] %}"
        "{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '\n' }}{% endif %}"
    )
    looks = CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    pictures = [Image.new("RGB", (SIZE, SIZE), (30 * place, 255 - 30 * place, 77)) for place in range(len(PROMPTS))]
    return {
        "processing_class": LlavaProcessor(
            looks, tokenizer, PATCH, "full", template, num_additional_image_tokens=1, image_token="<image>"
        ),
        "train_dataset": prompts(conversational=True, image=pictures),
    }


def llava() -> PreTrainedModel:
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIZE,
        patch_size=PATCH,
    )
    text = LlamaConfig(vocab_size=IMAGE + 1, **SMALL, **TOKENS)
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
    )
    torch.manual_seed(0)
    return LlavaForConditionalGeneration(config)


def experts() -> PreTrainedModel:
    config = Qwen3MoeConfig(
        vocab_size=100,
        head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        decoder_sparse_step=1,
        **SMALL,
        **TOKENS,
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config)


MODELS: dict[str, dict[str, Any]] = {
    # As TRL 1.16 does: a sampled token of a picture has no picture
    "images": {"MODEL": llava, "GIVEN": seeing, "FIELDS": {"generation_kwargs": {"suppress_tokens": [IMAGE]}}},
    "experts": {"MODEL": experts, "FIELDS": {"router_aux_loss_coef": 0.1}},
    "experts_without_their_loss": {"MODEL": experts, "FIELDS": {"router_aux_loss_coef": 0.0}},
}


def by_definition(
    self: GRPOTrainer,
    model: Any,
    input_ids: Tensor,
    attention_mask: Tensor,
    logits_to_keep: int,
    batch_size: int | None = None,
    compute_entropy: bool = False,
    compute_aux_loss: bool = False,
    num_images: list[int] | None = None,
    num_tiles: list[int] | None = None,
    **extra: Any,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """TRL's scores, without the fused head for which TRL 1.15 needs a GPU."""
    more = {name: value for name, value in extra.items() if value is not None}
    if compute_aux_loss:
        more["output_router_logits"] = True
    outputs = model(input_ids=input_ids, attention_mask=attention_mask, **more)
    log_probs = (outputs.logits[:, -logits_to_keep - 1 : -1].float() / self.temperature).log_softmax(-1)
    mask = attention_mask[:, -logits_to_keep:]
    chosen = log_probs.gather(-1, input_ids[:, -logits_to_keep:].unsqueeze(-1)).squeeze(-1) * mask
    entropies = -(log_probs.exp() * log_probs).sum(-1) * mask if compute_entropy else None
    return chosen, entropies, outputs.aux_loss if compute_aux_loss else None


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("fields", [WHOLE, SPLIT], ids=["whole", "split"])
def test_a_model_equals_stock(
    fields: dict[str, Any], name: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if STOCK is not GRPOTrainer:
        monkeypatch.setattr(GRPOTrainer, "_get_per_token_logps_and_entropies", by_definition)
    scenario = {"reward_funcs": early_letters, **MODELS[name]}
    stock = run(tiny_folder, tmp_path / "stock", GRPOTrainer, scenario, **fields)
    ours = run(tiny_folder, tmp_path / "ours", GRPOExtTrainer, scenario, **fields)
    assert_same(stock, ours, regrouped=fields is SPLIT)
    assert ("aux_loss" in ours.log[0]) == (name == "experts")
    assert any("vision" in weight for weight in ours.end) == (name == "images")
