"""Arguments and fields of TRL that reach into data, generation, the loss and the log: the same run with each."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from drop_in_runs import SPLIT, WHOLE, Counter, assert_same, both, run
from peft import LoraConfig
from tiny_runs import STOCK, early_letters, prompts
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedModel

from grpo_ext import GRPOExtTrainer
from grpo_ext.models import tiny_policy, tiny_tokenizer

# Each generation serves several steps, of which the later ones are beyond these limits
OFF_POLICY = {"steps_per_generation": 4, "learning_rate": 0.1, "epsilon_high": 0.002, "delta": 1.003}
CONVERSATIONS = {"train_dataset": prompts(conversational=True)}
DROPOUT = {"peft_config": LoraConfig(r=4, target_modules=["q_proj"], lora_dropout=0.5, init_lora_weights="gaussian")}
MOODY = (
    "{{ mood }}{% for message in messages %}{{ message['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ bos_token }}{% endif %}"
)


class Doubler(Counter):
    factor = 2


def judge() -> PreTrainedModel:
    """A reward model that reads the last token that is no padding."""
    config = LlamaConfig(
        vocab_size=100, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_labels=1
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = LlamaForSequenceClassification(config).eval()
    model.config.name_or_path = "some/judge"
    return model


def moody(model: PreTrainedModel) -> dict[str, Any]:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = MOODY
    return {"processing_class": tokenizer}


def halved_sgd(model: PreTrainedModel) -> dict[str, Any]:
    sgd = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
    return {"optimizers": (sgd, torch.optim.lr_scheduler.LambdaLR(sgd, lambda step: 0.5**step))}


def logging(completions: list[str], log_extra: Any, log_metric: Any, **kwargs: Any) -> list[float]:
    log_extra("length", [len(text) for text in completions])
    log_metric("longest", max(map(len, completions)))
    return early_letters(completions)


# Arguments of the trainer and, in capitals, what the run is made with (`drop_in_runs.run`)
OPTIONS: dict[str, dict[str, Any]] = {
    "reward_model": {
        "GIVEN": lambda model: {"reward_funcs": judge(), "reward_processing_classes": tiny_tokenizer()},
    },
    "reward_model_beside_a_function": {
        **CONVERSATIONS,
        "GIVEN": lambda model: {
            "reward_funcs": [early_letters, judge()],
            "reward_processing_classes": [None, tiny_tokenizer()],
        },
        "FIELDS": {"reward_weights": [1.0, 0.5]},
    },
    "streamed": {"train_dataset": prompts().to_iterable_dataset()},
    "evals": {
        "eval_dataset": {"some": prompts().select(range(2)), "others": prompts().select(range(2, 8))},
        "FIELDS": {"eval_strategy": "steps", "eval_steps": 1},
    },
    "environments": {
        "environment_factory": {"counter": Counter, "doubler": Doubler},
        "train_dataset": prompts(True, environment=["counter", "doubler"] * 4),
        "CALL": ("more", {"step": 2}),
    },
    "environment_owns_the_prompts": {
        "train_dataset": None,
        "environment_factory": Counter,
        "CALL": ("more", {"step": 2}),
        "reward_funcs": [],
    },
    "adaptive_entropy": {
        "FIELDS": {
            "use_adaptive_entropy": True,
            "entropy_coef": 0.05,
            "entropy_target": 4.44,
            "entropy_coef_delta": 0.01,
        },
    },
    "delta": {"FIELDS": OFF_POLICY},
    "off_policy_mask": {"FIELDS": {**OFF_POLICY, "off_policy_mask_threshold": 0.002}},
    "pad_to_multiple_of": {"FIELDS": {"pad_to_multiple_of": 8, "max_completion_length": 5}},
    "top_k": {"FIELDS": {"top_k": 5}},
    "top_p": {"FIELDS": {"top_p": 0.6}},
    "min_p": {"FIELDS": {"min_p": 0.3}},
    "repetition_penalty": {"FIELDS": {"repetition_penalty": 1.5}},
    "chat_template_kwargs": {**CONVERSATIONS, "GIVEN": moody, "FIELDS": {"chat_template_kwargs": {"mood": "calm"}}},
    "dropout": {**DROPOUT, "FIELDS": {"learning_rate": 1.0, "beta": 0.04}},
    "disable_dropout": {**DROPOUT, "FIELDS": {"learning_rate": 1.0, "disable_dropout": True}},
    "optimizers": {"GIVEN": halved_sgd},
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("fields", [WHOLE, SPLIT], ids=["whole", "split"])
@pytest.mark.filterwarnings("ignore:You are using:UserWarning")
def test_an_option_equals_stock(fields: dict[str, Any], name: str, tiny_folder: Path, tmp_path: Path) -> None:
    scenario = {"reward_funcs": early_letters, **OPTIONS[name]}
    assert_same(*both(tiny_folder, tmp_path, scenario, **fields, max_steps=3), regrouped=fields is SPLIT)


def test_what_a_reward_logs_equals_stock(tiny_folder: Path, tmp_path: Path) -> None:
    stock, ours = both(tiny_folder, tmp_path, {"reward_funcs": logging}, **SPLIT, log_completions=True)
    assert_same(stock, ours, regrouped=True)
    assert stock.log[0]["longest"] == 8
    for step in (1, 2):
        theirs, mine = (
            pd.read_parquet(tmp_path / name / "completions" / f"completions_{step:05}.parquet")
            for name in ("stock", "ours")
        )
        assert {"prompt", "completion", "logging", "length", "advantage"} <= set(theirs.columns)
        pd.testing.assert_frame_equal(mine, theirs, rtol=2e-5, atol=2e-6)


# Two ways to add up differ by a rounding in bfloat16, so the rows are those of TRL
def test_a_float32_head_equals_stock(tiny_folder: Path, tmp_path: Path) -> None:
    scenario = {
        "reward_funcs": early_letters,
        "MODEL": lambda: tiny_policy(dtype="bfloat16", tie_word_embeddings=False)[0],
        "FIELDS": {**WHOLE, "cast_lm_head_to_fp32": True},
    }
    stock = run(tiny_folder, tmp_path, STOCK, scenario)
    ours = run(tiny_folder, tmp_path, GRPOExtTrainer, scenario, scoring="padded")
    assert {weight.dtype for weight in ours.end.values()} == {torch.bfloat16, torch.float32}
    assert_same(stock, ours)
