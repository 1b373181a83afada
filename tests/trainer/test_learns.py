"""Every named objective learns: the reward of a tiny policy rises within a few steps."""

from pathlib import Path
from typing import Any

import pytest
from tiny_runs import make, texts

from grpo_ext import PRESETS

STEPS = 25
# The random policy writes the token once in a hundred characters; one in five is far outside what chance gives.
MARGIN = 0.2
# The ratio to the reference is clipped at 1.2, so this one may hardly leave it; chance has a deviation of 0.003 here.
MARGINS = {"beam": 0.03}


def share_of_a(completions: list[Any], **kwargs: Any) -> list[float]:
    return [text.count("a") / 8 for text in texts(completions)]


@pytest.mark.parametrize("name", PRESETS)
def test_reward_rises(name: str, tiny_folder: Path, tmp_path: Path) -> None:
    trainer = make(
        tiny_folder,
        tmp_path,
        reward_funcs=share_of_a,
        **{
            **PRESETS[name],
            # Beams of a random policy never hold the token, so a search would have nothing to compare
            "group_generation": "sampling",
            "optim": "adamw_torch",
            "learning_rate": 2e-2,
            "per_device_train_batch_size": 32,
            "gradient_accumulation_steps": 1,
            "num_generations": 8,
            "max_steps": STEPS,
            "lr_scheduler_type": "constant",
        },
    )
    trainer.train()
    rewards = [row["reward"] for row in trainer.state.log_history if "reward" in row]
    assert len(rewards) == STEPS
    first, last = sum(rewards[:5]) / 5, sum(rewards[-5:]) / 5
    assert last > first + MARGINS.get(name, MARGIN), [round(reward, 2) for reward in rewards]
