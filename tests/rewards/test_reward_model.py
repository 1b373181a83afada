"""A learned reward: chunks change nothing, conversations are read as in training, unsafe files refused."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertConfig, BertForSequenceClassification, LlamaForSequenceClassification
from trl import RewardConfig, RewardTrainer

from grpo_ext.models import tiny_policy, tiny_tokenizer
from grpo_ext.rewards.classifiers import agree_on_padding
from grpo_ext.rewards.reward_model import RECORD, RewardModel, conversation_ids, doubt, load_reward_model


def classifier(labels: int = 1, **config: Any) -> Any:
    policy, _ = tiny_policy(seed=0, **config)
    policy.config.num_labels = labels
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(policy.config)
    model.model.load_state_dict(policy.model.state_dict())
    torch.nn.init.normal_(model.score.weight, std=0.1)
    return model


def reward(labels: int = 1, **options: Any) -> RewardModel:
    model, tokenizer = classifier(labels), tiny_tokenizer()
    agree_on_padding(model, tokenizer)
    return RewardModel(model, tokenizer, **options)


READER = reward(batch_size=3)


@settings(max_examples=25)
@given(st.lists(st.text("abc \n", min_size=1, max_size=40), min_size=1, max_size=9), st.booleans())
def test_chunks_equal_one_row_at_a_time(texts: list[str], conversational: bool) -> None:
    prompts: list[Any] = [[{"role": "user", "content": "q" * (i % 4 + 1)}] for i in range(len(texts))]
    if not conversational:
        prompts = ["q" * (i % 4 + 1) for i in range(len(texts))]
    together = READER(prompts=prompts, completions=texts)
    for prompt, text, score in zip(prompts, texts, together, strict=True):
        ids = torch.tensor([conversation_ids(prompt, text, READER.tokenizer)])
        with torch.no_grad():
            assert score == pytest.approx(READER.model(ids).logits.item(), abs=1e-5)


def test_never_more_rows_than_asked_for_and_equal_lengths_together() -> None:
    shapes, reader = [], reward(batch_size=2)
    forward = reader.model.forward
    reader.model.forward = lambda **batch: (shapes.append(tuple(batch["input_ids"].shape)), forward(**batch))[1]
    reader(prompts=["a"] * 5, completions=["b" * n for n in (9, 1, 9, 1, 5)])
    assert shapes == [(2, 3), (2, 11), (1, 11)]


def test_the_models_pad_token_counts_where_the_tokenizers_differs() -> None:
    # The end of a row is the last token that is not the model's pad token, so padding with another would move it
    model, tokenizer = classifier(), tiny_tokenizer()
    model.config.pad_token_id = tokenizer.unk_token_id
    agree_on_padding(model, tokenizer)
    assert tokenizer.pad_token_id == tokenizer.unk_token_id and tokenizer.padding_side == "right"
    one, both = (RewardModel(model, tokenizer, batch_size=size) for size in (1, 2))
    given_rows = {"prompts": ["a", "b"], "completions": ["c", "d" * 20]}
    assert one(**given_rows) == pytest.approx(both(**given_rows), abs=1e-5)


PAIR = {"prompt": "What?", "chosen": "Yes.", "rejected": "No, never."}
TALK = {
    "prompt": [{"role": "user", "content": "What?"}],
    "chosen": [{"role": "assistant", "content": "Yes."}],
    "rejected": [{"role": "assistant", "content": "No, never."}],
}


@pytest.mark.parametrize("pair", [PAIR, TALK], ids=["text", "messages"])
def test_read_as_trls_trainer_reads_it(pair: dict[str, Any], tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    config = RewardConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none")
    trainer = RewardTrainer(
        model=classifier(), args=config, train_dataset=Dataset.from_list([pair]), processing_class=tokenizer
    )
    (row,) = trainer.train_dataset
    for side in ("chosen", "rejected"):
        assert conversation_ids(pair["prompt"], pair[side], tokenizer) == row[f"{side}_ids"]


def test_a_completion_may_be_text_after_messages() -> None:
    tokenizer = tiny_tokenizer()
    assert conversation_ids(TALK["prompt"], "Yes.", tokenizer) == conversation_ids(
        TALK["prompt"], TALK["chosen"], tokenizer
    )
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="has no chat template, but prompts are messages"):
        conversation_ids(TALK["prompt"], "Yes.", tokenizer)


def test_what_is_too_long_has_no_score() -> None:
    reader = reward(max_length=8)
    scores = reader(prompts=["a", "a"], completions=["b", "b" * 9])
    assert scores[0] is not None and scores[1] is None
    assert reward().max_length == 512


def test_labels() -> None:
    rows = {"prompts": ["a", "bc"], "completions": ["d", "efg"]}
    second = reward(3, label=1)(**rows)
    named = reward(3, label="LABEL_1")(**rows)
    assert second == named and all(0 < score < 1 for score in second)
    total = [sum(scores) for scores in zip(*(reward(3, label=index)(**rows) for index in range(3)), strict=True)]
    assert total == pytest.approx([1.0, 1.0], abs=1e-6)
    with pytest.raises(ValueError, match=r"has 3 labels \(LABEL_0, LABEL_1, LABEL_2\); name the one"):
        reward(3)
    with pytest.raises(ValueError, match="'good' is none of the reward model's labels"):
        reward(3, label="good")
    with pytest.raises(ValueError, match="has one output"):
        reward(1, label=0)
    with pytest.raises(ValueError, match="`batch_size` of the reward model is 0"):
        reward(batch_size=0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    reader = reward()
    reader.model.save_pretrained(tmp_path / "rm")
    reader.tokenizer.save_pretrained(tmp_path / "rm")
    return tmp_path / "rm"


ROWS = {"prompts": ["a", "bc", "de"], "completions": ["f", "ghi", "j" * 30]}


def test_loads_what_was_saved(folder: Path) -> None:
    loaded = load_reward_model(str(folder), batch_size=2, name_in_logs="kind")
    assert loaded(**ROWS) == pytest.approx(reward()(**ROWS), abs=1e-5)
    assert loaded.__name__ == "kind" and not loaded.model.training and loaded.tokenizer.padding_side == "right"
    half = load_reward_model(str(folder), dtype="bfloat16")
    assert half.model.dtype == torch.bfloat16
    assert half(**ROWS) == pytest.approx(reward()(**ROWS), abs=0.02)


@pytest.mark.parametrize("bits", [8, 4])
def test_in_few_bits(tmp_path: Path, bits: int) -> None:
    # Blocks of 4-bit weights are 64 wide
    classifier(hidden_size=64).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    exact = load_reward_model(str(tmp_path))
    few = load_reward_model(str(tmp_path), dtype="float32", **{f"load_in_{bits}bit": True})
    kinds = {type(module).__name__ for module in few.model.model.modules()}
    assert ("Linear8bitLt" if bits == 8 else "Linear4bit") in kinds
    assert type(few.model.score) is torch.nn.Linear
    scores = few(**ROWS)
    assert scores != exact(**ROWS) and scores == pytest.approx(exact(**ROWS), abs={8: 0.05, 4: 0.2}[bits])


def test_refusals(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="in 8 bit and in 4 bit; choose one"):
        load_reward_model(str(folder), load_in_8bit=True, load_in_4bit=True)
    with pytest.raises(ValueError, match="`dtype` is 'big'"):
        load_reward_model(str(folder), dtype="big")
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"in pytorch_model\.bin, a pickle, which can run code when it is read; save"):
        load_reward_model(str(folder))
    tiny_policy()[0].save_pretrained(tmp_path / "lm")
    with pytest.raises(
        ValueError, match=r"is a LlamaForCausalLM; it must be a sequence .* grpo_ext.recipes.reward_model` makes"
    ):
        load_reward_model(str(tmp_path / "lm"))


def test_an_encoder_with_an_end_token_of_its_own(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer), num_labels=1, **sizes))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    together = load_reward_model(str(tmp_path), batch_size=3)(**ROWS)
    assert together == pytest.approx(load_reward_model(str(tmp_path), batch_size=1)(**ROWS), abs=1e-5)


RECORDS = [
    ({"accuracy": 0.52, "interval": [0.41, 0.63]}, "52% of held-out pairs rightly (95% interval 41% to 63%)"),
    ({"accuracy": 0.56, "interval": [0.54, 0.58]}, "hardly more than a coin"),
    ({"accuracy": 0.3, "interval": [0.2, 0.4]}, "hardly more than a coin"),
    ({"accuracy": None, "interval": None}, "not known, because no pairs were held out"),
    ({"accuracy": 0.9, "interval": [0.8, 0.95]}, None),
]


@pytest.mark.parametrize(("record", "words"), RECORDS)
def test_a_warning_before_training_on_a_coin(
    record: dict[str, Any], words: str | None, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / RECORD).write_text(json.dumps(record))
    with caplog.at_level(logging.WARNING, "grpo_ext"):
        load_reward_model(str(folder))
    assert (doubt(record) is None) == (words is None)
    assert (words in caplog.text) if words else not caplog.records
