"""Fields of a recipe about the health of a run."""

from dataclasses import dataclass, field

from grpo_ext.health.detectors import DETECTORS, chosen, known
from grpo_ext.health.finding import Detector


@dataclass
class HealthOptions:
    """Which detectors watch a run, with which thresholds, and which of them may stop it.

    Raises:
        ValueError: an unknown detector or threshold, or one that is off and shall stop the run.
    """

    stop_on: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Detectors whose finding stops the run with a checkpoint and exit code 3, of: "
            f"{', '.join(DETECTORS)}.",
            "nargs": "+",
        },
    )
    health: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Thresholds of the detectors, as in kl_drift.limit=0.8, and detectors to leave out, as in "
            "reward_plateau=off.",
            "nargs": "+",
        },
    )

    def __post_init__(self) -> None:
        words = [self.stop_on] if isinstance(self.stop_on, str) else self.stop_on
        self.stop_on = [name.strip() for word in words for name in word.split(",") if name.strip()]
        self.health = [self.health] if isinstance(self.health, str) else self.health
        watching = self.detectors()
        for name in self.stop_on:
            if known(name, "stop_on") not in watching:
                raise ValueError(f"`stop_on` holds {name!r}, but `health` switches it off; drop one of the two.")

    def detectors(self) -> dict[str, Detector]:
        """The detectors that watch the run, with its thresholds."""
        return chosen(self.health)
