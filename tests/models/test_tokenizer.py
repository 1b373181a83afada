"""Which token pads, and the character tokenizer that the tests of other rooms rely on."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from grpo_ext.models import PLAIN_CHAT_TEMPLATE, tiny_policy, tiny_tokenizer
from grpo_ext.models.tokenizer import choose_pad_token, prepare_tokenizer, settle_template

CHAT = [{"role": "user", "content": "1 + 2?"}, {"role": "assistant", "content": "3"}]


def tokenizer_with(special: list[str], **named: str) -> PreTrainedTokenizerFast:
    core = Tokenizer(WordLevel({"a": 0, "b": 1}, None))
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return PreTrainedTokenizerFast(tokenizer_object=core, **named)


@pytest.mark.parametrize(
    ("special", "named", "pad"),
    [
        (["<s>", "</s>", "[PAD]"], {"eos_token": "</s>", "pad_token": "[PAD]"}, "[PAD]"),
        (["<s>", "</s>", "<pad>"], {"eos_token": "</s>", "pad_token": "</s>"}, "<pad>"),
        (["<|eot_id|>", "<|reserved_special_token_0|>", "<|finetune_right_pad_id|>"],
         {"eos_token": "<|eot_id|>"}, "<|finetune_right_pad_id|>"),
        (["<|eot_id|>", "<|reserved_special_token_0|>", "<|python_tag|>"],
         {"eos_token": "<|eot_id|>"}, "<|reserved_special_token_0|>"),
        (["<eos>", "<unused0>", "<unused1>"], {"eos_token": "<eos>", "pad_token": "<eos>"}, "<unused0>"),
        (["<|endoftext|>", "<|im_start|>", "<|image_pad|>", "<|fim_pad|>"],
         {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}, "<|fim_pad|>"),
        (["<s>", "</s>", "<unk>"], {"eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>"}, "<unk>"),
        (["<s>", "</s>", "<unk>", "<file>"],
         {"eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>"}, "<file>"),
        (["</s>"], {"eos_token": "</s>"}, None),
    ],
)  # fmt: skip
def test_the_pad_token_is_a_free_one_and_never_the_end(
    special: list[str], named: dict[str, str], pad: str | None
) -> None:
    assert choose_pad_token(tokenizer_with(special, **named)) == pad


def test_a_token_that_the_chat_template_uses_is_not_free() -> None:
    tokenizer = tokenizer_with(["</s>", "<first>", "<turn>"], eos_token="</s>")
    tokenizer.chat_template = "<turn>{{ messages[0]['content'] }}"
    assert choose_pad_token(tokenizer) == "<first>"


def test_only_a_vocabulary_without_free_token_pads_with_the_end() -> None:
    tokenizer = prepare_tokenizer(tokenizer_with(["</s>"], eos_token="</s>"))
    assert tokenizer.pad_token == "</s>" and tokenizer.padding_side == "left"
    with pytest.raises(ValueError, match="neither a pad token"):
        prepare_tokenizer(tokenizer_with([]))


def test_preparing_adds_no_token() -> None:
    tokenizer = tokenizer_with(["</s>", "<pad>"], eos_token="</s>")
    size = len(tokenizer)
    assert len(prepare_tokenizer(tokenizer)) == size == 4 and tokenizer.pad_token_id == 3


def test_the_plain_template_is_the_bare_text() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = PLAIN_CHAT_TEMPLATE
    assert tokenizer.apply_chat_template(CHAT[:1], tokenize=False, add_generation_prompt=True) == "1 + 2?\n"
    assert tokenizer.apply_chat_template(CHAT, tokenize=False) == "1 + 2?\n3<eos>\n"


@given(st.text("".join(map(chr, range(32, 127))) + "\n", min_size=1))
def test_characters_come_back(text: str) -> None:
    tokenizer = tiny_tokenizer()
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert len(ids) == len(text) and min(ids) > 3


def test_the_tiny_template_frames_turns_with_special_tokens() -> None:
    tokenizer = tiny_tokenizer()
    prompt = tokenizer.apply_chat_template(CHAT[:1], add_generation_prompt=True, return_dict=True)["input_ids"]
    whole = tokenizer.apply_chat_template(CHAT, return_dict=True)["input_ids"]
    assert tokenizer.decode(prompt) == "<bos>user\n1 + 2?<eos>\n<bos>assistant\n"
    assert whole[: len(prompt)] == prompt and whole.count(tokenizer.eos_token_id) == 2
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, len(tokenizer)) == (0, 1, 100)


def test_tiny_policies_follow_their_seed_and_leave_torchs_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    models = [tiny_policy(seed)[0] for seed in (0, 0, 1)]
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)
    first, same, other = (torch.cat([p.flatten() for p in model.parameters()]) for model in models)
    assert torch.equal(first, same) and not torch.allclose(first, other)
    assert models[0].num_parameters() < 50_000


def test_a_tiny_adapter_starts_as_the_identity() -> None:
    ids = torch.arange(4, 20)[None]
    adapted, bare = tiny_policy(lora_r=2)[0], tiny_policy()[0]
    torch.testing.assert_close(adapted(ids).logits, bare(ids).logits, rtol=1e-6, atol=1e-6)
    assert {n.split(".")[-2] for n, p in adapted.named_parameters() if p.requires_grad} == {"default"}


@pytest.mark.parametrize(
    ("values", "begins"),
    [(None, "thinks, None"), ({}, "thinks, None"), ({"thinking": False, "by": "a 'b'"}, "answers, a 'b'")],
)
def test_values_of_the_template_hold_for_all_who_render(values: dict[str, Any] | None, begins: str) -> None:
    tokenizer = tiny_tokenizer()
    said = (
        "{{ 'answers' if thinking is defined and not thinking else 'thinks' }}, {{ by if by is defined else None }}: "
    )
    tokenizer.chat_template = said + str(tokenizer.chat_template)
    plain = tiny_tokenizer().apply_chat_template(CHAT, tokenize=False)
    settle_template(tokenizer, values)
    assert tokenizer.apply_chat_template(CHAT, tokenize=False) == f"{begins}: {plain}"
    # Training passes the same values
    assert tokenizer.apply_chat_template(CHAT, tokenize=False, **(values or {})) == f"{begins}: {plain}"
