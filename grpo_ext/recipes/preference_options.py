"""Which preference pairs a recipe learns from."""

from dataclasses import dataclass, field

from grpo_ext.checks import at_least
from grpo_ext.data.preferences import BUILT_IN, Preferences, load_preferences


@dataclass
class PreferenceArguments:
    """Pairs to train on and pairs to measure on."""

    preferences: str = field(
        default=BUILT_IN,
        metadata={"help": "builtin, a JSON Lines file with prompt, chosen and rejected, or a data set on the hub."},
    )
    preferences_split: str = field(default="train", metadata={"help": "Split of the hub's set to train on."})
    preferences_test_split: str = field(
        default="test", metadata={"help": "Split to measure on; without it some prompts are held out."}
    )
    train_size: int | None = field(default=None, metadata={"help": "Pairs to train on; unset: all."})
    eval_size: int = field(default=128, metadata={"help": "Held-out pairs."})

    def check_preferences(self) -> None:
        """Refuse sizes below one.

        Raises:
            ValueError: in one sentence.
        """
        at_least("eval_size", self.eval_size)
        at_least("train_size", self.eval_size if self.train_size is None else self.train_size)

    def load(self, seed: int) -> Preferences:
        """The pairs, see `load_preferences`."""
        return load_preferences(
            self.preferences,
            split=self.preferences_split,
            test_split=self.preferences_test_split,
            train_size=self.train_size,
            test_size=self.eval_size,
            seed=seed,
        )
