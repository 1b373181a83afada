"""`load_policy` on one back end or the other: what is refused, and a seed that means the same everywhere."""

from typing import Any

import pytest
import torch

from grpo_ext.models import load_policy, tiny_policy
from grpo_ext.models.unsloth import check_engine, check_loaded, check_tokens, linear_names


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tiny")
    model, tokenizer = tiny_policy(seed=1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"backend": "deepspeed"}, r"backend is 'deepspeed'"),
        ({"max_seq_length": 64}, r"max_seq_length is 64, but backend 'transformers' has no such option; the config's"),
        ({"use_gradient_checkpointing": "unsloth"}, r"use_gradient_checkpointing is 'unsloth'.*`gradient_checkpoint"),
        ({"fast_inference": True}, r"fast_inference is True.*`use_vllm` with `vllm_sync='adapter'`"),
        ({"gpu_memory_utilization": 0.5}, r"gpu_memory_utilization is 0.5.*`vllm_gpu_memory_utilization`"),
        ({"max_lora_rank": 64}, r"max_lora_rank is 64.*chosen from `lora_r`"),
        ({"backend": "unsloth", "lora_r": 0}, r"lora_r is 0, .* backend 'unsloth' is for adapters; set lora_r"),
        ({"backend": "unsloth", "lora_r": -2}, r"lora_r is -2"),
    ],
)
def test_what_a_back_end_cannot_honour_is_refused(tiny_folder: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load_policy(tiny_folder, **options)


def test_a_seed_gives_the_same_adapter_and_leaves_the_generator_alone(tiny_folder: str) -> None:
    def adapter(**options: Any) -> list[torch.Tensor]:
        return [w for name, w in load_policy(tiny_folder, **options)[0].named_parameters() if "lora_A" in name]

    torch.manual_seed(0)
    state = torch.get_rng_state()
    first, again, other = adapter(random_state=7), adapter(random_state=7), adapter(random_state=8)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, first, again)) and not torch.equal(first[0], other[0])
    free = adapter()
    assert not torch.equal(free[0], adapter()[0])


# What Unsloth does not refuse itself. The functions need no Unsloth; tests/models/test_unsloth.py has the rest.


def test_a_pad_token_that_ends_completions() -> None:
    _, tokenizer = tiny_policy()
    check_tokens(tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    with pytest.raises(ValueError, match=r"pads with its end token .* would not learn to stop; add a pad token"):
        check_tokens(tokenizer)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ((torch.float16, False, False), r"dtype torch\.float16 was asked for, but Unsloth loaded torch\.float32"),
        ((torch.float32, True, False), r"loaded weights that are not 4-bit, because bitsandbytes does not work here"),
        ((torch.float32, False, True), r"Unsloth started no vLLM engine on this GPU"),
    ],
)
def test_what_came_back_is_not_what_was_asked_for(asked: tuple[torch.dtype, bool, bool], words: str) -> None:
    model, _ = tiny_policy()
    check_loaded(model, torch.float32, False, False)
    with pytest.raises(ValueError, match=words):
        check_loaded(model, *asked)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"on_cpu": True}, r"fast_inference=True needs a GPU"),
        ({"max_rank": 16, "lora_r": 32}, r"lora_r is 32, but max_lora_rank is 16; raise it to 32\."),
        ({"lora_r": 600}, r"The adapter has rank 600, and vLLM serves ranks up to 512"),
        ({"utilization": 1.5}, r"gpu_memory_utilization is 1\.5, but it is a share"),
        ({"revision": "main"}, r"revision is 'main', but vLLM under fast_inference=True ignores it"),
        ({"trust_remote_code": True}, r"trust_remote_code is True, but vLLM"),
        ({"asked": False, "max_rank": 16}, r"max_lora_rank is 16, but it is of the engine that fast_inference=True"),
    ],
)
def test_what_the_engine_inside_unsloth_cannot_do(
    options: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    usual = {"asked": True, "utilization": None, "max_rank": None, "lora_r": 16, "on_cpu": False, "revision": None}
    usual["trust_remote_code"] = False
    check_engine(**usual)
    with pytest.raises(ValueError, match=words):
        check_engine(**{**usual, **options})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs vLLM, which is not installed; `grpo-ext doctor --vllm` says"):
        check_engine(**usual)


def test_all_linear_layers_by_name() -> None:
    model, _ = tiny_policy(tie_word_embeddings=False)
    names = linear_names(model)
    assert sorted(names) == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
