"""The data sets by name: what people and the hub call them, and how many problems there are to train on."""

from dataclasses import dataclass

from grpo_ext.data import cmath, gsm8k, math


@dataclass(frozen=True)
class DataSet:
    """A row of the table.

    Attributes:
        title: name for people.
        train_size: training problems, or None where the set has none.
        trained: the hub's name of the training rows, or None.
        measured: the hub's name of the held-out rows, or None.
        config: configuration of that data set on the hub, or None.
        split: its held-out split.
    """

    title: str
    train_size: int | None = None
    trained: str | None = None
    measured: str | None = None
    config: str | None = None
    split: str = "test"


SETS: dict[str, DataSet] = {
    "gsm8k": DataSet("GSM8K", 7473, gsm8k.HUB, gsm8k.HUB, gsm8k.HUB_CONFIG),
    # As many as a recipe draws when it is not told; there are far more
    "arithmetic": DataSet("word problems built into grpo_ext", 2048),
    "math": DataSet("MATH", 12_000, math.HUB["train"], math.HUB["test"]),
    "cmath": DataSet("CMATH", None, None, cmath.HUB, split="validation"),
}


def title_of(name: str) -> str:
    """What a data set, or a mixture of them, is called.

    Args:
        name: as in a recipe's `dataset`, mixtures with a plus sign.

    Returns:
        Its name for people; an unknown one stays as it is.
    """
    return " and ".join(SETS[part].title if part in SETS else part for part in name.split("+"))
