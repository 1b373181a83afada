"""Process supervision in the trainer: (B, T) advantages by hand, every path of the loss, refusals, logged numbers."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import PROMPTS, largest_difference, make, policy, prompts, weights

from grpo_ext import GRPOExtConfig, GRPOExtTrainer
from grpo_ext.faults import RunStopped
from grpo_ext.models import tiny_tokenizer
from grpo_ext.rewards.steps import Step, split_steps
from grpo_ext.trainer.advantages import AdvantageTrainer

RUN: dict[str, Any] = {"process_reward": "calculations", "max_completion_length": 24}


def letters(prompts: Any, completions: Any, steps: list[list[Step]], **columns: Any) -> list[list[float | None]]:
    """A step reward with spread, None for every short step."""
    return [[None if len(s.text) < 2 else sum(c < "N" for c in s.text) / len(s.text) for s in row] for row in steps]


def after_marks(text: str) -> list[int]:
    """Steps that end with a digit or a vowel, because a random policy seldom writes a newline."""
    return [i + 1 for i, c in enumerate(text) if c.isdigit() or c in "aeiou"]


def trainer(folder: Path, out: Path, reward: Any = letters, **fields: Any) -> GRPOExtTrainer:
    chosen = {**RUN, **fields}
    made = make(folder, out, GRPOExtTrainer, **chosen)
    made._process_reward, made._splitter = reward, after_marks
    return made


def batches(made: GRPOExtTrainer) -> list[dict[str, Any]]:
    """What each generation hands to the loss."""
    seen: list[dict[str, Any]] = []
    inner = made._generate_and_score_completions

    def watched(inputs: Any) -> Any:
        output = inner(inputs)
        rows = zip(output["completion_ids"].tolist(), made._lengths, strict=True)
        texts = [made.processing_class.decode(ids[:n], skip_special_tokens=True) for ids, n in rows]
        prompted = [made.processing_class.decode(ids, skip_special_tokens=True) for ids in output["prompt_ids"]]
        seen.append({name: value.clone() for name, value in output.items() if torch.is_tensor(value)})
        seen[-1] |= {"texts": texts, "prompts": prompted, "lengths": list(made._lengths)}
        return output

    made._generate_and_score_completions = watched
    return seen


def plain(batch: dict[str, Any], size: int = 4, outcome: Any = None) -> torch.Tensor:
    """The definition in loops; characters are tokens here."""
    found = torch.zeros_like(batch["completion_mask"], dtype=torch.float64)
    for start in range(0, len(batch["texts"]), size):
        scored = []
        for row in range(start, start + size):
            text, end = batch["texts"][row], 0
            ids = batch["completion_ids"][row, : batch["lengths"][row]].tolist()
            places = [place for place, token in enumerate(ids) if token > 3]  # the others are special
            finished = ids[-1] in (0, 1)
            parts = re.findall(r"[^0-9aeiou]*[0-9aeiou]\s*$|[^0-9aeiou]*[0-9aeiou]|[^0-9aeiou]+$", text)
            for part in parts:
                end += len(part)
                if len(part.strip()) >= 2 and (part.strip()[-1] in "0123456789aeiou" or finished):
                    value = sum(c < "N" for c in part.strip()) / len(part.strip())
                    last = finished and end == len(text)
                    scored.append((row, len(ids) - 1 if last else places[end - 1], value))
            if outcome is not None:
                scored.append((row, len(ids) - 1, outcome(text)))
        values = torch.tensor([value for *_, value in scored], dtype=torch.float64)
        if len(values) < 2 or values.max() == values.min():
            continue
        for (row, end, _), value in zip(scored, (values - values.mean()) / (values.std() + 1e-4), strict=True):
            found[row, : end + 1] += value
    return found


def share(text: str) -> float:
    return sum(c < "N" for c in text) / max(len(text), 1)


@pytest.mark.parametrize(
    "fields", [{}, {"surrogate": "none"}, {"importance_sampling_level": "sequence_token"}], ids=str
)
def test_advantages_are_those_of_the_definition(tiny_folder: Path, tmp_path: Path, fields: dict[str, Any]) -> None:
    made = trainer(tiny_folder, tmp_path, max_steps=3, **fields)
    seen = batches(made)
    made.train()
    varied = 0
    for batch in seen:
        expected = plain(batch)
        torch.testing.assert_close(batch["advantages"].double(), expected, rtol=0, atol=1e-5)
        varied += int((expected != expected[:, :1]).any(1).sum())
    assert varied >= 4


def test_the_outcome_as_the_last_step(tiny_folder: Path, tmp_path: Path) -> None:
    made = trainer(tiny_folder, tmp_path, process_answer_step="outcome")
    seen = batches(made)
    made.train()
    for batch in seen:
        torch.testing.assert_close(batch["advantages"].double(), plain(batch, outcome=share), rtol=0, atol=1e-5)


def test_without_steps_the_outcome_step_is_outcome_supervision(tiny_folder: Path, tmp_path: Path) -> None:
    made = trainer(tiny_folder, tmp_path / "a", lambda **given: [[None] * len(s) for s in given["steps"]],
                   process_answer_step="outcome")  # fmt: skip
    one, two = batches(made), []
    made.train()
    other = make(tiny_folder, tmp_path / "b", max_completion_length=24)
    inner = other._generate_and_score_completions
    other._generate_and_score_completions = lambda inputs: two.append(inner(inputs)) or two[-1]
    other.train()
    for mine, outcome in zip(one, two, strict=True):
        expected = outcome["advantages"][:, None] * outcome["completion_mask"]
        torch.testing.assert_close(mine["advantages"], expected, rtol=0, atol=1e-5)
    assert largest_difference(weights(made.model), weights(other.model)) < 1e-6


def test_weight_against_the_outcome(tiny_folder: Path, tmp_path: Path) -> None:
    made = trainer(tiny_folder, tmp_path, process_weight=0.25)
    seen = batches(made)
    made.train()
    for batch in seen:
        rewards = torch.tensor([share(text) for text in batch["texts"]]).view(-1, 4)
        outcome = ((rewards - rewards.mean(1, True)) / (rewards.std(1, keepdim=True) + 1e-4)).flatten()
        expected = 0.25 * plain(batch) + 0.75 * outcome[:, None]
        found = batch["advantages"].double()
        torch.testing.assert_close(found, expected * batch["completion_mask"], rtol=0, atol=1e-5)


def test_the_step_is_that_of_a_plain_loss(tiny_folder: Path, tmp_path: Path) -> None:
    """Two groups over two micro-batches, regrouped, with shared passes: one SGD step of the loss written out."""
    for name, fields in {"trl": {}, "own": {"surrogate": "clip"}, "kl": {"beta": 0.1}}.items():
        made = trainer(tiny_folder, tmp_path / name, max_steps=1, loss_type="grpo", max_grad_norm=1e9, **fields)
        seen = batches(made)
        made.train()
        (batch,) = seen
        model = policy(tiny_folder)
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
        width = batch["completion_ids"].size(1)
        logits = model(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits
        logps = logits[:, -width - 1 : -1].log_softmax(-1).gather(-1, batch["completion_ids"][..., None])[..., 0]
        inside = batch["completion_mask"].float()
        losses = -(logps - logps.detach()).exp() * plain(batch).float() * inside
        ((losses.sum(1) / inside.sum(1)).mean()).backward()
        for weight in model.parameters():
            weight.data -= 1e-2 * weight.grad
        assert largest_difference(weights(model), weights(policy(tiny_folder))) > 1e-4
        assert largest_difference(weights(model), weights(made.model)) < 1e-6, name


def test_a_row_without_advantages_is_not_trained_on(tiny_folder: Path, tmp_path: Path) -> None:
    def first_row_only(steps: list[list[Step]], **given: Any) -> list[list[float | None]]:
        return [[float(row % 4 < 2)] * len(s) if row % 4 in (1, 2) else [None] * len(s) for row, s in enumerate(steps)]

    fields = {"max_steps": 1, "scoring": "tree", "scoring_tokens": 10**6}
    made = trainer(tiny_folder, tmp_path, first_row_only, **fields)
    alive: list[list[bool]] = []
    inner = made._score_alive
    made._score_alive = lambda *args: alive.append(args[5].tolist()) or inner(*args)
    seen = batches(made)
    made.train()
    expected = seen[0]["advantages"].any(1)
    assert 0 < int(expected.sum()) <= 4
    assert sum(map(sum, alive)) == int(expected.sum()) and sum(map(len, alive)) == 8


def test_truncated_rows_can_be_masked(tiny_folder: Path, tmp_path: Path) -> None:
    made = trainer(tiny_folder, tmp_path, mask_truncated_completions=True, process_answer_step="outcome")
    seen = batches(made)
    made.train()
    cut = [batch["completion_mask"].sum(1) == 0 for batch in seen]
    assert any(rows.any() for rows in cut)
    for batch, rows in zip(seen, cut, strict=True):
        assert not batch["advantages"][rows].any()


def test_group_by_a_column(tiny_folder: Path, tmp_path: Path) -> None:
    made = make(tiny_folder, tmp_path, GRPOExtTrainer, dataset=prompts(kind=["x"] * len(PROMPTS)), group_by="kind",
                process_answer_step="outcome", **RUN)  # fmt: skip
    made._process_reward, made._splitter = letters, after_marks
    seen = batches(made)
    made.train()
    for batch in seen:
        expected = plain(batch, size=8, outcome=share)
        torch.testing.assert_close(batch["advantages"].double(), expected, rtol=0, atol=1e-5)


def test_logged(tiny_folder: Path, tmp_path: Path) -> None:
    made = trainer(tiny_folder, tmp_path, max_steps=1)
    seen = batches(made)
    made.train()
    (row,) = [row for row in made.state.log_history if "process/steps" in row]
    parts = []
    for ids, length in zip(seen[0]["completion_ids"], seen[0]["lengths"], strict=True):
        parts.append(split_steps(ids[:length].tolist(), tiny_tokenizer(), after_marks, {0, 1}))
    rewards = [value for values in letters(None, None, parts) for value in values]
    known = [value for value in rewards if value is not None]
    assert row["process/steps"] == pytest.approx(len(known) / 8)
    assert row["process/reward"] == pytest.approx(sum(known) / len(known), abs=1e-5)
    assert row["process/unrewarded"] == pytest.approx(1 - len(known) / len(rewards), abs=1e-5)
    assert 0 < row["process/varied_rows"] <= 1
    mean = (seen[0]["advantages"].sum(1) / seen[0]["completion_mask"].sum(1)).tolist()
    assert list(made._logs["advantages"]) == pytest.approx(mean, abs=1e-6)


def test_evaluation_has_its_own_metrics(tiny_folder: Path, tmp_path: Path) -> None:
    made = trainer(tiny_folder, tmp_path, per_device_eval_batch_size=4)
    found = made.evaluate(prompts())
    assert found["eval_process/steps"] > 0


def test_own_reward_and_splitter_are_arguments(tiny_folder: Path, tmp_path: Path) -> None:
    calls: list[list[list[Step]]] = []

    def reward(steps: list[list[Step]], **given: Any) -> list[list[float | None]]:
        assert {"prompts", "completions", "completion_ids"} <= set(given)
        calls.append(steps)
        return [[float(i) for i in range(len(row))] for row in steps]

    config = GRPOExtConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", max_steps=1,
                           per_device_train_batch_size=4, num_generations=4, **RUN)  # fmt: skip
    made = GRPOExtTrainer(
        policy(tiny_folder), share_of_rows, config, train_dataset=prompts(), processing_class=tiny_tokenizer(),
        process_reward=reward, step_splitter=lambda text: range(3, len(text) + 1, 3),
    )  # fmt: skip
    made.train()
    assert calls and all(step.end - step.start == 3 for row in calls[0] for step in row if not step.is_last)
    assert max(len(row) for row in calls[0]) > 2


def share_of_rows(completions: list[str], **columns: Any) -> list[float]:
    return [share(text) for text in completions]


def test_a_bad_reward_is_named(tiny_folder: Path, tmp_path: Path) -> None:
    made = trainer(tiny_folder, tmp_path, lambda steps, **given: [[float("nan")] * len(row) for row in steps])
    with pytest.raises(RunStopped, match="'calculations' returned nan for a step of row"):
        made.train()
    made = trainer(tiny_folder, tmp_path, lambda steps, **given: [[1.0] for _ in steps])
    with pytest.raises(RunStopped, match=r"returned 1 rewards for the \d+ steps of row"):
        made.train()


def test_unset_is_outcome_supervision(tiny_folder: Path, tmp_path: Path) -> None:
    made = make(tiny_folder, tmp_path, max_steps=1)
    made.train()
    assert not [name for row in made.state.log_history for name in row if name.startswith("process/")]


def test_refusals_of_the_trainer(tiny_folder: Path, tmp_path: Path) -> None:
    def tool(x: int) -> int:
        """Add one.

        Args:
            x: a number.
        """
        return x + 1

    config = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "report_to": "none",
              "per_device_train_batch_size": 4, "num_generations": 4}  # fmt: skip
    common = {"train_dataset": prompts(), "processing_class": tiny_tokenizer()}
    with pytest.raises(ValueError, match="`process_reward` of the config is unset"):
        GRPOExtTrainer(policy(tiny_folder), share_of_rows, GRPOExtConfig(**config), process_reward=letters, **common)
    with pytest.raises(ValueError, match="`rollout_func`"):
        GRPOExtTrainer(
            policy(tiny_folder), share_of_rows, GRPOExtConfig(**config, process_reward="calculations"),
            rollout_func=lambda *args: {}, **common,
        )  # fmt: skip


def test_refused_roll_outs_never_begin(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make(tiny_folder, tmp_path, process_reward="rollouts_soft")
    # With a tokenizer alone such a dataset is refused before
    made.train_dataset = prompts(conversational=True, image=[None] * len(PROMPTS))
    with pytest.raises(ValueError, match=r"the dataset has images \(column 'image'\); use 'calculations' or 'model'"):
        made._check_rollouts(of_policy=True)
    inner = AdvantageTrainer.__init__

    def sharding(self: AdvantageTrainer, *args: Any, **kwargs: Any) -> None:
        inner(self, *args, **kwargs)
        self.is_fsdp_enabled = True

    monkeypatch.setattr(AdvantageTrainer, "__init__", sharding)
    with pytest.raises(ValueError, match=r"the policy does not roll out .* name a `process_rollout_model`"):
        make(tiny_folder, tmp_path, process_reward="rollouts_soft")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"process_weight": 0.0}, "`process_weight` is 0.0"),
        ({"process_separator": ""}, "`process_separator` is empty"),
        ({"process_rollouts": 0}, "`process_rollouts` is 0"),
        ({"process_rollout_tokens": 0}, "`process_rollout_tokens` is 0"),
        ({"process_reward": "model"}, "a model go together"),
        ({"process_reward_model": "x"}, "a model go together"),
        ({"process_reward": None, "process_weight": 0.5}, "without `process_reward`"),
        ({"process_reward": "typo"}, "must be one of: calculations, rollouts_soft"),
        ({"group_generation": "stochastic_beam", "scale_rewards": "none"}, "one reward a completion"),
        ({"resampling": "dynamic_sampling"}, "`resampling` 'dynamic_sampling'"),
        ({"multi_objective_aggregation": "normalize_then_sum"}, "normalize_then_sum"),
        ({"kl_in": "reward", "beta": 0.1}, "`kl_in` 'reward'"),
        ({"importance_sampling_level": "sequence"}, "`importance_sampling_level` 'sequence'"),
        ({"importance_sampling_level": "sequence_sum", "surrogate": "none"}, "'sequence_sum'"),
        ({"surrogate": "geometric"}, "`surrogate` 'geometric'"),
    ],
    ids=str,
)  # fmt: skip
def test_refusals_of_the_config(tmp_path: Path, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError) as caught:
        GRPOExtConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **{**RUN, **fields})
    message = str(caught.value)
    assert words in message and "\n" not in message and message.endswith(".")
