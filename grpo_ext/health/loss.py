"""Why a loss near 0 is normal in GRPO, said with the numbers of the run."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from grpo_ext.health.history import History, number


def _shown(history: History, name: str, text: str) -> str:
    values = history.first(name, len(history.rows))
    return text.format(fmean(values)) if values else ""


def at_the_start(row: Mapping[str, Any]) -> str:
    """What the first logged loss means.

    Args:
        row: the first logged row.

    Returns:
        One sentence, or nothing when no loss was logged.
    """
    loss = number(row.get("loss"))
    if loss is None:
        return ""
    history = History([row])
    instead = _shown(history, "effective_samples", " (here {:.0f})") + ", `grad_norm`"
    return (
        f"The loss is {loss:.2g}, and near 0 is normal in GRPO: before an update every ratio is 1, so its value is "
        "minus the mean advantage, which is 0 in a group (plus `beta` times the KL), while its gradient is not; watch "
        f"`reward`, `effective_samples`{instead}{_shown(history, 'grad_norm', ' (here {:.2g})')} instead."
    )


def at_the_end(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the run did while its loss stayed near 0.

    Args:
        rows: all logged rows.

    Returns:
        One sentence, or nothing when no loss was logged.
    """
    history = History(rows)
    losses = history.first("loss", len(rows))
    if not losses:
        return ""
    rewards = history.first("reward", len(rows))
    tenth = max(1, len(rewards) // 10)
    learned = f"the reward went from {fmean(rewards[:tenth]):.3g} to {fmean(rewards[-tenth:]):.3g}" if rewards else ""
    told = [
        learned,
        _shown(history, "effective_samples", "a step had {:.0f} effective samples"),
        _shown(history, "grad_norm", "and a gradient norm of {:.2g}"),
    ]
    rest = ", ".join(part for part in told if part)
    return (
        f"The loss was {fmean(losses):.2g} on average, which says nothing about learning: on-policy it is minus the "
        f"mean advantage, 0 by construction{'; ' + rest if rest else ''}."
    )
