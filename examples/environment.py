"""Several turns with an environment: TRL's `environment_factory` plays, our objective learns.

The model guesses a number through a tool and is told higher or lower. Tokens that the tool wrote are in no loss; the
environment owns the reward. It needs a model whose chat template knows tools. Run it: python examples/environment.py
"""

from typing import Any

from datasets import Dataset

from grpo_ext import PRESETS, GRPOExtConfig, GRPOExtTrainer, load_policy

NAME = "Qwen/Qwen3-0.6B"


class Guessing:
    """One game; TRL makes as many as it needs and calls `reset` with the columns of a row."""

    def reset(self, secret: int, **row: Any) -> None:
        """A new game."""
        self.secret, self.guesses, self.found = secret, 0, False

    def guess(self, number: int) -> str:
        """Guess the secret number.

        Args:
            number: A whole number from 1 to 10.

        Returns:
            Whether the secret is higher or lower, or that it is found.
        """
        self.guesses += 1
        self.found = self.found or number == self.secret
        return "found" if number == self.secret else "higher" if number < self.secret else "lower"

    def get_reward(self) -> float:
        """1 for the first guess, a tenth less for each further one."""
        return max(0.0, 1.1 - 0.1 * self.guesses) if self.found else 0.0


def main(model: str = NAME, size: int = 64, **fields: Any) -> GRPOExtTrainer:
    """Train with sums over tokens and without a division by the deviation (Dr. GRPO)."""
    settings = {**PRESETS["dr_grpo"], "output_dir": "runs/environment", "max_steps": 10, "max_completion_length": 512}
    asked = [{"role": "user", "content": "Find the secret number from 1 to 10 with the tool guess."}]
    policy, tokenizer = load_policy(model, lora_r=32)
    trainer = GRPOExtTrainer(
        model=policy,
        args=GRPOExtConfig(**{**settings, **fields}),
        train_dataset=Dataset.from_dict({"prompt": [asked] * size, "secret": [1 + i % 10 for i in range(size)]}),
        processing_class=tokenizer,
        environment_factory=Guessing,
    )
    trainer.train()
    return trainer


if __name__ == "__main__":
    main()
