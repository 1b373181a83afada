"""Rewards of steps: the rule, roll-outs in numbers by hand, and a classifier against its own forward pass."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification, LlamaForTokenClassification, PreTrainedModel

from grpo_ext.checkpoints import pack, unpack
from grpo_ext.models import tiny_tokenizer
from grpo_ext.rewards import correct_final
from grpo_ext.rewards.process import PROCESS_REWARDS, RolloutReward, Tools, calculations
from grpo_ext.rewards.process_check import checked_steps
from grpo_ext.rewards.process_model import ModelReward, load_process_model, share_good, written
from grpo_ext.rewards.steps import Step, split_steps

TOKENIZER = tiny_tokenizer()
END = 1


def ids_of(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def batch(*texts: str) -> dict[str, Any]:
    """Completions that end, and their steps."""
    ids = [[*ids_of(text), END] for text in texts]
    return {
        "prompts": ["q"] * len(texts),
        "completions": list(texts),
        "steps": [split_steps(row, TOKENIZER, "\n", {END}) for row in ids],
        "completion_ids": ids,
        "prompt_ids": [ids_of("q")] * len(texts),
    }


def test_the_rule() -> None:
    given = batch("Ann adds.\n3 + 4 = 7\n7 * 2 = 15\n#### 14", "")
    assert calculations(**given) == [[None, 1.0, 0.0, None], []]


class Scripted:
    """Continuations by the last character of the prefix, a text a roll-out."""

    def __init__(self, **texts: list[str]) -> None:
        self.texts, self.asked = texts, []

    def __call__(self, prefixes: list[list[int]], count: int, room: list[int]) -> list[list[list[int]]]:
        self.asked.append(([TOKENIZER.decode(prefix) for prefix in prefixes], count, room))
        return [[ids_of(text) for text in self.texts[TOKENIZER.decode(p).strip()[-1]][:count]] for p in prefixes]


def tools(draw: Any, **fields: Any) -> Tools:
    fixed = {"continue_from": draw, "check": correct_final, "tokenizer": TOKENIZER, "device": torch.device("cpu"),
             "max_completion_length": 40, "rollouts": 4}  # fmt: skip
    return Tools(**{**fixed, **fields})


A = ["#### 7", "#### 8", "b\n#### 7", "nothing"]
B = ["#### 1", "#### 2", "#### 3", "#### 4"]


def test_rollouts_by_hand() -> None:
    given = batch("a\nb\n#### 7", "b\n#### 8")
    draw = Scripted(a=A, b=["#### 7", *B[:3]], c=B)
    soft = RolloutReward(tools(draw))
    # After "a" two of four are right, after "a b" one of four, after "b" of the second row one of four
    assert soft(**given, answer=["7", "7"]) == [[0.5, 0.25, 1.0], [0.25, 0.0]]
    assert draw.asked == [(["qa\n", "qa\nb\n", "qb\n"], 4, [38, 36, 38])]
    assert soft.stats == {
        "rollout_tokens": sum(len(t) for t in A) + 2 * sum(len(t) for t in ["#### 7", *B[:3]]),
        "estimated": 3.0, "left_out": 0.0, "reused": 0.0,
    }  # fmt: skip
    hard = RolloutReward(tools(Scripted(a=A, b=B)), hard=True)
    assert hard(**given, answer=["7", "7"]) == [[1.0, 0.0, 1.0], [0.0, 0.0]]


def test_equal_beginnings_are_estimated_once_and_kept() -> None:
    draw = Scripted(a=A, b=B)
    soft = RolloutReward(tools(draw))
    given = batch("a\n#### 7", "a\n#### 8", "a\nb\n#### 7")
    first = soft(**given, answer=["7"] * 3)
    assert draw.asked[0][0] == ["qa\n", "qa\nb\n"]
    assert soft(**given, answer=["7"] * 3) == first
    assert draw.asked[1][0] == [] and soft.stats["reused"] == 2.0
    # Another gold answer is another estimate, and so is another policy
    soft(**batch("a\n#### 7"), answer=["8"])
    assert draw.asked[2][0] == ["qa\n"]
    soft.forget()
    soft(**batch("a\n#### 7"), answer=["7"])
    assert draw.asked[3][0] == ["qa\n"]
    fixed = RolloutReward(tools(draw, policy_rolls_out=False))
    fixed(**batch("a\n#### 7"), answer=["7"])
    fixed.forget()
    fixed(**batch("a\n#### 7"), answer=["7"])
    assert draw.asked[-1][0] == []


def test_estimates_are_kept_under_short_names_of_all_that_they_depend_on() -> None:
    soft = RolloutReward(tools(Scripted(a=A)))
    long = batch("b" * 30 + "a\n#### 7")
    soft(**long, answer=["7"])
    # The same ids, but one of the prompt is the completion's
    moved = long | {"prompt_ids": [[*ids_of("q"), *long["completion_ids"][0][:1]]]}
    moved |= {"completion_ids": [long["completion_ids"][0][1:]]}
    moved |= {"steps": [split_steps(moved["completion_ids"][0], TOKENIZER, "\n", {END})]}
    soft(**moved, answer=["7"])
    soft(**long, answer=["8"])
    assert len(soft.cache) == 3 and {len(key) for key in soft.cache} == {32}
    other = RolloutReward(tools(Scripted()))
    other.load_state_dict(unpack(json.loads(json.dumps(pack(soft.state_dict(), {}))), {}))
    assert other(**long, answer=["7"]) == [[0.5, 1.0]]


def test_a_budget_leaves_steps_out() -> None:
    draw = Scripted(a=A, b=B)
    reward = RolloutReward(tools(draw, token_budget=4 * 38 + 4 * 36))
    found = reward(**batch("a\nb\n#### 7", "b\na\n#### 7", "b\n#### 7"), answer=["7"] * 3)
    asked, _, room = draw.asked[0]
    assert len(asked) == 2 and 4 * sum(room) <= 4 * (38 + 36)
    assert reward.stats["left_out"] == 2.0
    assert [value for row in found for value in row].count(None) >= 2
    assert RolloutReward(tools(draw, token_budget=1))(**batch("a\n#### 7"), answer=["7"]) == [[None, 1.0]]


def test_unknown_gold_is_no_reward() -> None:
    reward = RolloutReward(tools(Scripted(a=A)))
    assert reward(**batch("a\n#### 7"), answer=[None]) == [[None, None]]


def test_conversations_are_checked_as_conversations() -> None:
    seen: list[Any] = []

    def check(prompts: Any, completions: Any, **columns: Any) -> list[float]:
        seen.extend(completions)
        return [1.0] * len(completions)

    given = batch("a\n#### 7") | {"completions": [[{"role": "assistant", "content": "a\n#### 7"}]]}
    RolloutReward(tools(Scripted(a=A), check=check, rollouts=1))(**given)
    assert seen == [given["completions"][0], [{"role": "assistant", "content": "a\n#### 7"}]]


# Models


def classifier(kind: type[PreTrainedModel], labels: int, seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = LlamaConfig(vocab_size=len(TOKENIZER), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
                         num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0,
                         num_labels=labels, initializer_range=0.5)  # fmt: skip
    return kind(config).eval()


TEXTS = ("3 + 4 = 7\n#### 7", "1 + 1 = 3\n2 + 2 = 4\n#### 4", "#### 9")


@pytest.mark.parametrize("labels", [1, 2])
@pytest.mark.parametrize("batch_size", [1, 16])
def test_a_token_classifier_reads_the_last_token_of_each_step(labels: int, batch_size: int) -> None:
    model = classifier(LlamaForTokenClassification, labels)
    given = batch(*TEXTS)
    found = ModelReward(model, TOKENIZER, batch_size=batch_size)(**given)
    for text, values in zip(TEXTS, found, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([ids_of("q" + text + "\n")])).logits[0]
        ends = [i + 1 for i, c in enumerate(text + "\n") if c == "\n"]
        expected = [logits[e].sigmoid().item() if labels == 1 else logits[e].softmax(0)[1].item() for e in ends]
        assert values == pytest.approx(expected, abs=1e-5)
    assert len({round(value, 3) for row in found for value in row}) > 3


def test_a_sequence_classifier_reads_each_beginning() -> None:
    model = classifier(LlamaForSequenceClassification, 2)
    found = ModelReward(model, TOKENIZER, tag=" *", batch_size=4)(**batch(TEXTS[1]))
    lines = TEXTS[1].split("\n")
    for end, value in enumerate(found[0], start=1):
        text = "q" + "".join(line + " *" for line in lines[:end])
        with torch.no_grad():
            logits = model(torch.tensor([ids_of(text)])).logits[0]
        assert value == pytest.approx(logits.softmax(0)[1].item(), abs=1e-5)


def test_steps_beyond_the_model_s_length_are_not_rewarded() -> None:
    model = classifier(LlamaForTokenClassification, 2)
    (found,) = ModelReward(model, TOKENIZER, max_length=18)(**batch(TEXTS[1]))
    assert found[0] is not None and found[1:] == [None, None]


def test_share_good() -> None:
    assert share_good(torch.tensor([0.0])).item() == 0.5
    assert share_good(torch.tensor([0.0, 1.0, 0.0]).log(), 1).item() == 1.0
    assert share_good(torch.tensor([[1.0, 3.0]]).log()).tolist() == pytest.approx([0.75])


def test_a_chat_template_is_the_classifier_s_own() -> None:
    ids, ends = written([{"role": "user", "content": "hi"}], ["a", "b"], TOKENIZER, "\n")
    assert TOKENIZER.decode(ids) == "<bos>user\nhi<eos>\n<bos>assistant\na\nb\n"
    assert ends == [len(ids) - 3, len(ids) - 1]


@pytest.mark.parametrize("kind", [LlamaForTokenClassification, LlamaForSequenceClassification])
def test_saved_and_loaded(kind: type[PreTrainedModel], tmp_path: Any) -> None:
    model = classifier(kind, 2)
    model.save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    given = batch(*TEXTS)
    loaded = load_process_model(str(tmp_path))
    assert isinstance(loaded.model, kind)
    for one, other in zip(loaded(**given), ModelReward(model, TOKENIZER)(**given), strict=True):
        assert one == pytest.approx(other, abs=1e-6)
    named = PROCESS_REWARDS["model"](tools(None, model=str(tmp_path)))
    assert named(**given)[0] == pytest.approx(loaded(**given)[0], abs=1e-6)
    half = load_process_model(str(tmp_path), dtype="bfloat16")
    assert half.model.dtype == torch.bfloat16


def test_a_model_that_is_no_classifier_is_named(tmp_path: Any) -> None:
    from grpo_ext.models import tiny_policy

    tiny_policy()[0].save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"must be a token or sequence .* grpo_ext.recipes.process_reward` makes"):
        load_process_model(str(tmp_path))


def test_what_a_reward_returns_is_checked() -> None:
    steps = [[Step("a", 0, 1, 0), Step("b", 1, 2, 1)], []]
    assert checked_steps("r", [[1, None], []], steps) == [[1.0, None], []]
    assert checked_steps("r", [[np.float32(0.5), torch.tensor(1)], []], steps) == [[0.5, 1.0], []]
    for bad, words in {
        "no list": (5, "did not return a list for each of 2 completions"),
        "rows": ([[1.0, 1.0]], "did not return a list for each of 2"),
        "steps": ([[1.0], []], "returned 1 rewards for the 2 steps of row 0"),
        "value": ([["x", 1.0], []], "returned 'x' .* for a step of row 0"),
        "beyond float32": ([[1e300, 1.0], []], "returned 1e\\+300 for a step of row 0"),
        "infinite": ([[float("inf"), 1.0], []], "returned inf for a step of row 0"),
    }.values():
        with pytest.raises(ValueError, match=words):
            checked_steps("r", bad, steps)
