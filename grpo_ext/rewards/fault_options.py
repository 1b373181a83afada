"""Fields of the config that say what becomes of a run whose reward functions fail."""

from dataclasses import dataclass, field

from grpo_ext.checks import choice
from grpo_ext.rewards.guard import Patience

# What is done when a reward function has failed for good
ERRORS = ("stop", "unscorable")


@dataclass
class RewardFaultOptions:
    """Patience with reward functions and reward models that raise, hang or return something else than rewards."""

    reward_timeout: float | None = field(
        default=None,
        metadata={
            "help": "Seconds that one call of a reward function may take, after which it is given up; unset: waits "
            "for ever."
        },
    )
    reward_retries: int = field(
        default=0,
        metadata={"help": "Times that a call of a reward function which failed is made again, after growing pauses."},
    )
    reward_errors: str = choice(
        "stop",
        ERRORS,
        "When it fails for good: stop the run with a checkpoint, or take its rows for unscorable.",
    )
    max_unscorable: float = field(
        default=0.5,
        metadata={
            "help": "Largest share of the completions of one generation that no reward function scores; above it the "
            "run stops with a checkpoint."
        },
    )

    def check_reward_faults(self, processes: int, ddp_timeout: float) -> None:
        """Refuse numbers that mean nothing, and patience beyond that of the other processes.

        Args:
            processes: number of them; the others wait where rewards are gathered.
            ddp_timeout: seconds that they wait there.

        Raises:
            ValueError: in one sentence.
        """
        if self.reward_timeout is not None and not self.reward_timeout > 0:
            raise ValueError(f"`reward_timeout` is {self.reward_timeout}; it must be above 0 seconds, or unset.")
        if self.reward_retries < 0:
            raise ValueError(f"`reward_retries` is {self.reward_retries}; it must be at least 0.")
        if not 0.0 <= self.max_unscorable <= 1.0:
            raise ValueError(f"`max_unscorable` is {self.max_unscorable}; it is a share, from 0 to 1.")
        longest = Patience(self.reward_timeout, self.reward_retries).longest()
        if processes > 1 and longest >= ddp_timeout:
            raise ValueError(
                f"`reward_timeout` {self.reward_timeout} and `reward_retries` {self.reward_retries} may keep one "
                f"process busy for {longest:g} s, and the others give up after `ddp_timeout` {ddp_timeout} s; set a "
                "larger ddp_timeout, or less patience."
            )
