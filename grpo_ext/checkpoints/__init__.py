"""Checkpoints that survive a kill: folders that are whole or not there, and the values that a run goes on with."""

from grpo_ext.checkpoints.folders import (
    LAST,
    MANIFEST,
    TRAINER_STATE,
    WORKING,
    choose,
    flaw,
    publish,
    recover,
    rotate,
    write_manifest,
)
from grpo_ext.checkpoints.values import Stateful, pack, unpack

__all__ = [
    "LAST",
    "MANIFEST",
    "TRAINER_STATE",
    "WORKING",
    "Stateful",
    "choose",
    "flaw",
    "pack",
    "publish",
    "recover",
    "rotate",
    "unpack",
    "write_manifest",
]
