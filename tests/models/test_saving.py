"""What is written is what was trained: adapters that plain peft loads, merged models with the policy's own logits."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from grpo_ext.models import load_policy, save_policy, tiny_policy
from grpo_ext.models.saving import SAVE_FORMATS, merged, replaced


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tiny")
    model, tokenizer = tiny_policy(seed=1, hidden_size=64, num_hidden_layers=2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def trained(folder: str, **options: Any) -> tuple[Any, Any]:
    """A policy whose adapter says something else than its base."""
    policy, tokenizer = load_policy(folder, lora_r=4, random_state=3, **options)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if "lora_B" in name:
                weight.copy_(0.2 * torch.randn(weight.shape, generator=generator))
    return policy.eval(), tokenizer


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    ids = torch.randint(4, 100, (2, 12), generator=torch.Generator().manual_seed(0))
    return model(input_ids=ids).logits.float()


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return ((one - other).norm() / one.norm()).item()


def test_the_adapter_reloads_in_plain_peft(tiny_folder: str, tmp_path: Path) -> None:
    policy, tokenizer = trained(tiny_folder, dtype="float32")
    # TRL's reference policy is a second adapter, which no one wants to load
    policy.add_adapter("ref", policy.peft_config["default"])
    folder = save_policy(policy, tokenizer, tmp_path)["adapter"]
    assert folder == tmp_path / "adapter" and not (folder / "ref").exists()
    base = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    loaded = PeftModel.from_pretrained(base, folder).eval()
    torch.testing.assert_close(logits(loaded), logits(policy), rtol=1e-6, atol=1e-6)
    assert AutoTokenizer.from_pretrained(folder).pad_token_id == tokenizer.pad_token_id


@pytest.mark.parametrize("load_in_4bit", [False, True])
def test_a_merged_model_has_the_logits_of_the_policy(tiny_folder: str, tmp_path: Path, load_in_4bit: bool) -> None:
    policy, tokenizer = trained(tiny_folder, dtype="float32", load_in_4bit=load_in_4bit)
    before = logits(policy)
    folder = save_policy(policy, tokenizer, tmp_path, ["model"])["model"]
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.dtype == torch.float32 and "quantization_config" not in loaded.config.to_dict()
    assert apart(logits(loaded), before) < 1e-5
    # The adapter changes far more than that, and saving has changed nothing
    with policy.disable_adapter():
        assert apart(logits(policy), before) > 0.1
    torch.testing.assert_close(logits(policy), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("dtype", "written"), [("float32", "bfloat16"), ("bfloat16", "bfloat16"), ("float16", "float16")]
)
def test_merged_16bit_is_the_sum_rounded_once(tiny_folder: str, tmp_path: Path, dtype: str, written: str) -> None:
    policy, tokenizer = trained(tiny_folder, dtype=dtype)
    folder = save_policy(policy, tokenizer, tmp_path, ["merged_16bit"])["merged_16bit"]
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.dtype == getattr(torch, written)
    layer = policy.base_model.model.model.layers[1].mlp.down_proj
    factors = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    wanted = (layer.base_layer.weight.float() + 2.0 * factors).to(loaded.dtype)
    torch.testing.assert_close(loaded.model.layers[1].mlp.down_proj.weight, wanted, rtol=0, atol=0)


def test_a_model_without_adapter_is_written_whole(tiny_folder: str, tmp_path: Path) -> None:
    policy, tokenizer = load_policy(tiny_folder, dtype="float32", lora_r=0)
    save_policy(policy, tokenizer, tmp_path, ["model", "merged_16bit"])
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(logits(loaded), logits(policy.eval()), rtol=0, atol=0)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged_16bit").dtype == torch.bfloat16
    with pytest.raises(ValueError, match=r"save_format 'adapter' needs an adapter.* use 'model'"):
        save_policy(policy, tokenizer, tmp_path)


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    model, _ = tiny_policy(tie_word_embeddings=True)
    made = merged(model)
    assert made.lm_head.weight is made.model.embed_tokens.weight


def test_what_cannot_be_written_is_refused_before_anything_is(tiny_folder: str, tmp_path: Path) -> None:
    policy, tokenizer = trained(tiny_folder)
    for formats, words in (
        (["adapter", "gguf"], r"save_format 'gguf' is Unsloth's, on a GPU;.*convert_hf_to_gguf\.py merged_16bit"),
        (["zip"], r"save_format is 'zip', but must be among 'adapter', 'model', 'merged_16bit', 'gguf'\."),
    ):
        with pytest.raises(ValueError, match=words):
            save_policy(policy, tokenizer, tmp_path / "out", formats)
    assert not (tmp_path / "out").exists()
    assert set(SAVE_FORMATS) == {"adapter", "model", "merged_16bit", "gguf"}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"modules_to_save": ["lm_head"]}, "also trains .*lm_head"),
        ({"use_dora": True}, "lora_magnitude_vector|variant"),
    ],
)
def test_an_adapter_that_is_more_than_two_factors_is_not_merged(fields: dict[str, Any], words: str) -> None:
    model, tokenizer = tiny_policy(hidden_size=64)
    policy = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], **fields))
    with pytest.raises(ValueError, match=f"{words}.*use 'adapter'"):
        save_policy(policy, tokenizer, "nowhere", ["model"])


def test_a_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "adapter"
    target.mkdir()
    (target / "old").write_text("")
    with pytest.raises(KeyboardInterrupt), replaced(target) as work:
        (work / "half").write_text("")
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"] and (target / "old").exists()
    with pytest.raises(OSError), replaced(target) as work:
        work.rmdir()  # so that it cannot take the target's name
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"] and (target / "old").exists()
    with replaced(target) as work:
        (work / "new").write_text("")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    assert [path.name for path in target.iterdir()] == ["new"]
