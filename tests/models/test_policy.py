"""Loading a policy: types, adapters, 4-bit weights whose gradients stay true, and tokens that model and text share."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from grpo_ext.models import load_policy, tiny_policy
from grpo_ext.models import policy as loading


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tiny")
    model, tokenizer = tiny_policy(seed=1, hidden_size=64, num_hidden_layers=2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def batch(vocabulary: int = 100) -> torch.Tensor:
    return torch.randint(4, vocabulary, (2, 12), generator=torch.Generator().manual_seed(0))


def adapter_gradients(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()
    return torch.cat([p.grad.flatten() for n, p in model.named_parameters() if p.requires_grad and p.grad is not None])


def roll_out(model: torch.nn.Module, ids: torch.Tensor) -> None:
    # bitsandbytes repacks its weights only in evaluation mode.
    model.eval()
    with torch.no_grad():
        model.generate(input_ids=ids, max_new_tokens=4, do_sample=False)
    model.train()


def wake_adapter(model: torch.nn.Module) -> None:
    # The second factor starts at zero, where the first has no gradient.
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_have_the_asked_for_type_and_adapters_float32(tiny_folder: str, dtype: str) -> None:
    model, tokenizer = load_policy(tiny_folder, dtype=dtype, lora_r=4)
    assert isinstance(model, PeftModel) and model.training
    types = {name: parameter.dtype for name, parameter in model.named_parameters()}
    assert {kind for name, kind in types.items() if "lora_" in name} == {torch.float32}
    assert {kind for name, kind in types.items() if "lora_" not in name} == {getattr(torch, dtype)}
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {n for n in types if "lora_" in n}
    assert tokenizer.padding_side == "left"


@pytest.mark.parametrize("zero3", [False, True])
def test_zero_3_places_the_weights_itself(tiny_folder: str, zero3: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # DeepSpeed is not installed, so only what transformers is asked for
    given: list[dict[str, Any]] = []

    def opened(*args: Any, **options: Any) -> torch.nn.Module:
        given.append(options)
        return tiny_policy(seed=1)[0]

    monkeypatch.setattr(loading, "opened", opened)
    monkeypatch.setattr(loading, "is_deepspeed_zero3_enabled", lambda: zero3)
    load_policy(tiny_folder, device="cpu")
    # transformers refuses a map with ZeRO-3
    assert [options.get("device_map") for options in given] == [None if zero3 else {"": "cpu"}]


@pytest.mark.parametrize(("rank", "seen", "place"), [("3", 1, "cuda:0"), ("3", 4, "cuda:3"), ("5", 4, "cuda:1")])
def test_a_process_takes_a_gpu_that_it_sees(rank: str, seen: int, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", rank)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
    assert loading.first_gpu() == place


def test_auto_means_the_type_the_weights_were_saved_in(tiny_folder: str) -> None:
    assert load_policy(tiny_folder, dtype="auto", lora_r=None)[0].dtype == torch.float32


@pytest.mark.parametrize("lora_r", [0, None])
def test_without_rank_every_weight_trains_and_nothing_is_changed(tiny_folder: str, lora_r: int | None) -> None:
    model, _ = load_policy(tiny_folder, dtype="float32", lora_r=lora_r)
    assert not isinstance(model, PeftModel)
    assert all(parameter.requires_grad for parameter in model.parameters())
    plain, _ = tiny_policy(seed=1, hidden_size=64, num_hidden_layers=2)
    torch.testing.assert_close(model(batch()).logits, plain(batch()).logits, rtol=0, atol=0)


def test_a_fresh_adapter_changes_nothing_and_its_scale_is_two(tiny_folder: str) -> None:
    model, _ = load_policy(tiny_folder, dtype="float32", lora_r=8)
    config = model.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout) == (8, 16, 0.0)
    plain, _ = tiny_policy(seed=1, hidden_size=64, num_hidden_layers=2)
    torch.testing.assert_close(model(batch()).logits, plain(batch()).logits, rtol=1e-6, atol=1e-6)


def test_lora_options_reach_the_adapter(tiny_folder: str) -> None:
    model, _ = load_policy(
        tiny_folder, lora_r=4, lora_alpha=3, lora_dropout=0.1, lora_target_modules=("q_proj", "v_proj")
    )
    config = model.peft_config["default"]
    assert (config.lora_alpha, config.lora_dropout) == (3, 0.1)
    adapted = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name, _ in model.named_parameters() if "lora_" in name}
    assert adapted == {"q_proj", "v_proj"}


def test_all_linear_leaves_the_head_alone(tiny_folder: str) -> None:
    names = [name for name, _ in load_policy(tiny_folder, lora_r=4)[0].named_parameters() if "lora_" in name]
    assert len(names) == 2 * 7 * 2 and not any("lm_head" in name or "embed" in name for name in names)


def test_four_bit_gradients_survive_a_rollout(tiny_folder: str) -> None:
    model, _ = load_policy(tiny_folder, load_in_4bit=True, dtype="float32", lora_r=4)
    assert model.base_model.model.model.layers[0].self_attn.q_proj.base_layer.weight.dtype == torch.uint8
    wake_adapter(model)
    ids = batch()
    before = adapter_gradients(model, ids)
    roll_out(model, ids)
    torch.testing.assert_close(adapter_gradients(model, ids), before, rtol=1e-6, atol=1e-7)
    assert before.abs().sum() > 1


def test_four_bit_gradients_are_those_of_the_dequantised_weights(tiny_folder: str) -> None:
    import bitsandbytes as bnb

    model, _ = load_policy(tiny_folder, load_in_4bit=True, dtype="float32", lora_r=4)
    plain, _ = load_policy(tiny_folder, dtype="float32", lora_r=4)
    for layer, source in zip(model.modules(), plain.modules(), strict=True):
        if isinstance(layer, bnb.nn.Linear4bit):
            weight = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
            source.weight.data.copy_(weight)
    plain.load_state_dict({n: p for n, p in model.state_dict().items() if "lora_" in n}, strict=False)
    for policy in (model, plain):
        wake_adapter(policy)
    ids = batch()
    roll_out(model, ids)
    ours, true = adapter_gradients(model, ids), adapter_gradients(plain, ids)
    assert torch.linalg.norm(ours - true) < 1e-4 * torch.linalg.norm(true)


def test_model_and_tokenizer_agree_on_pad_and_end(tiny_folder: str) -> None:
    model, tokenizer = load_policy(tiny_folder)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == 1
    assert model.generation_config.pad_token_id == model.config.pad_token_id == tokenizer.pad_token_id == 0


def test_an_end_token_the_model_does_not_know_is_added(tiny_folder: str, tmp_path: Path) -> None:
    model, tokenizer = tiny_policy(eos_token_id=3)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert load_policy(tmp_path)[0].generation_config.eos_token_id == [1, 3]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"dtype": "int8"}, ["dtype", "'int8'", "'bfloat16'"]),
        ({"lora_r": -1}, ["lora_r is -1"]),
        ({"load_in_4bit": True, "lora_r": 0}, ["load_in_4bit", "lora_r"]),
    ],
)
def test_a_wrong_argument_is_named(tiny_folder: str, arguments: dict[str, object], words: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        load_policy(tiny_folder, **arguments)
    assert all(word in str(error.value) for word in words)


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    model, tokenizer = tiny_policy()
    tokenizer.save_pretrained(tmp_path)
    model.config.save_pretrained(tmp_path)
    with pytest.raises(OSError, match="no model could be loaded from") as error:
        load_policy(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_a_folder_without_tokenizer_is_named(tmp_path: Path) -> None:
    tiny_policy()[0].save_pretrained(tmp_path)
    with pytest.raises(OSError, match="no tokenizer could be loaded from") as error:
        load_policy(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_a_missing_template_is_said_once_and_may_be_given(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, tokenizer = tiny_policy()
    tokenizer.chat_template = None
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING, logger="grpo_ext"):
        load_policy(tmp_path)
    assert sum("no chat template" in record.getMessage() for record in caplog.records) == 1
    assert load_policy(tmp_path, chat_template="{{ 1 }}")[1].chat_template == "{{ 1 }}"
