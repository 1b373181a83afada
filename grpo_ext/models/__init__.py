"""Where a policy and its tokenizer come from."""

from __future__ import annotations

import importlib
from typing import Any

# Looked up on first use, so that importing this package pulls in neither transformers nor peft: Unsloth has to be
# imported before them.
_EXPORTS = {
    "load_policy": "load",
    "load_tokenizer": "tokenizer",
    "PLAIN_CHAT_TEMPLATE": "tokenizer",
    "resolve_model": "resolve",
    "save_policy": "saving",
    "tiny_policy": "tiny",
    "tiny_tokenizer": "tiny",
}

__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)
