"""grpo_ext: objectives, advantages and recipes of GRPO on top of TRL's trainer.

The names below are imported when first used, so that `import grpo_ext` costs nothing and a back end that must be
imported before TRL still can be.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grpo_ext.config import GRPOExtConfig
    from grpo_ext.models import load_policy
    from grpo_ext.objective import Objective
    from grpo_ext.presets import PRESETS
    from grpo_ext.trainer import GRPOExtTrainer

__version__ = "0.1.0"

_LAZY = {
    "GRPOExtConfig": "grpo_ext.config",
    "GRPOExtTrainer": "grpo_ext.trainer",
    "Objective": "grpo_ext.objective",
    "PRESETS": "grpo_ext.presets",
    "load_policy": "grpo_ext.models",
}

__all__ = ["PRESETS", "GRPOExtConfig", "GRPOExtTrainer", "Objective", "__version__", "load_policy"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'grpo_ext' has no attribute {name!r}; it has: {', '.join(__all__)}")
    return getattr(import_module(_LAZY[name]), name)
