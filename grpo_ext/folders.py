"""Where grpo_ext keeps what it makes once for a user."""

import os
from pathlib import Path


def cache_root() -> Path:
    """`$GRPO_EXT_CACHE`, by default `~/.cache/grpo_ext`."""
    return Path(os.environ.get("GRPO_EXT_CACHE") or Path.home() / ".cache" / "grpo_ext")
