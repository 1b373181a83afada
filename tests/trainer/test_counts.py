"""What a generation is said to have taught and cost: dead groups by their advantages, tokens of the policy alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import early_letters, make

from grpo_ext import GRPOExtTrainer

RUN: dict[str, Any] = {"max_steps": 1}


def nothing(completions: list[Any], **kwargs: Any) -> list[float]:
    """Rewards whose mean is rounded."""
    return [0.3] * len(completions)


def one_group_in_two(completions: list[Any], **kwargs: Any) -> list[float]:
    return [0.3 if i % 8 < 4 else value for i, value in enumerate(early_letters(completions))]


def logged(trainer: Any) -> dict[str, float]:
    trainer.train()
    return next(row for row in trainer.state.log_history if "loss" in row)


@pytest.mark.parametrize(("reward", "share"), [(early_letters, 0.0), (one_group_in_two, 0.5), (nothing, 1.0)])
def test_dead_groups_are_those_without_an_advantage(
    reward: Any, share: float, tiny_folder: Path, tmp_path: Path
) -> None:
    assert logged(make(tiny_folder, tmp_path, reward_funcs=reward, **RUN))["dead_groups"] == share


def test_a_group_that_its_steps_teach_is_not_dead(tiny_folder: Path, tmp_path: Path) -> None:
    fields = {"process_reward": "calculations", "process_weight": 1.0, "process_answer_step": "scored"}
    trainer = make(tiny_folder, tmp_path, reward_funcs=nothing, **RUN, **fields)
    trainer._process_reward = lambda steps, **columns: [[float(at) for _ in row] for at, row in enumerate(steps)]
    trainer._splitter = lambda text: list(range(1, len(text) + 1))
    row = logged(trainer)
    assert (row["dead_groups"], row["frac_reward_zero_std"]) == (0.0, 1.0)


def test_equal_rewards_teach_without_a_baseline(tiny_folder: Path, tmp_path: Path) -> None:
    fields = {"advantage_baseline": "none", "scale_rewards": "none"}
    assert logged(make(tiny_folder, tmp_path, reward_funcs=nothing, **RUN, **fields))["dead_groups"] == 0.0


def test_a_run_knows_nothing_of_a_step_that_was_left_in_its_middle(tiny_folder: Path, tmp_path: Path) -> None:
    begun: list[Any] = []

    class Stopped(GRPOExtTrainer):
        def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
            begun.append((self._kl_of_step, self._waiting, list(self._compared)))
            if len(begun) == 2:
                # What a run with vLLM has at such a time
                self._waiting = inputs
                self._compared.append((torch.ones(1), torch.ones(1)))
                raise RuntimeError("stop here")
            return super()._compute_loss(model, inputs)

    trainer = make(tiny_folder, tmp_path, Stopped, **RUN, beta=0.1, kl_controller="ziegler", kl_target=1.0)
    with pytest.raises(RuntimeError, match="stop here"):
        trainer.train()
    trainer.train()
    assert begun[1][0][1] > 0
    assert begun[0] == begun[2] == (0.0, None, [])


def test_the_kl_in_the_reward_is_of_the_whole_row(tiny_folder: Path, tmp_path: Path) -> None:
    fields = {"kl_in": "reward", "kl_estimator": "k1", "beta": 0.1}
    trainer = make(tiny_folder, tmp_path, lora=True, **RUN, **fields)
    seen: list[dict[str, Any]] = []

    def scores(*args: Any, **given: Any) -> tuple[torch.Tensor, None, None]:
        seen.append(given)
        return torch.zeros(2, 3), None, None

    trainer._get_per_token_logps_and_entropies = scores
    ids = torch.ones(2, 3, dtype=torch.long)
    names = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
    rows = {**dict.fromkeys(names, ids), "ref_per_token_logps": torch.ones(2, 3)}
    images = {"pixel_values": torch.ones(2, 4), "num_images": [1, 1]}
    assert trainer._sequence_kl({**rows, **images, "advantages": ids}).tolist() == [-3.0, -3.0]
    assert seen == [{"batch_size": 4, **images}]


def test_generated_tokens_are_those_of_the_policy(tiny_folder: Path, tmp_path: Path) -> None:
    lengths = [2, 5, 8, 3, 1, 8, 4, 6]

    def made(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        """Completions that do not end, whose first token is a tool's."""
        ids = [trainer.processing_class(prompt)["input_ids"] for prompt in prompts]
        spelled = [trainer.processing_class("abcdefgh"[:length])["input_ids"] for length in lengths]
        spelled = [row[-length:] for row, length in zip(spelled, lengths, strict=True)]
        return {
            "prompt_ids": ids,
            "completion_ids": spelled,
            "logprobs": [[-1.0] * length for length in lengths],
            "env_mask": [[0] + [1] * (length - 1) for length in lengths],
        }

    for masked in (False, True):
        # A random policy seldom ends its completions, so nearly all of them are masked
        trainer = make(tiny_folder, tmp_path, mask_truncated_completions=masked, **RUN)
        length = logged(trainer)["completions/mean_length"]
        assert trainer.generated_tokens == 8 * length > 8
    trainer.rollout_func = made
    trainer.train()
    assert trainer.generated_tokens == 8 * length + sum(lengths) - len(lengths)
