"""Checkpoints that survive a kill: folders that are whole or not there, and the values that a run goes on with."""

from grpo_ext.checkpoints.disk import cut_short, estimated, free, held, size, why_unwritten
from grpo_ext.checkpoints.folders import (
    LAST,
    MANIFEST,
    TRAINER_STATE,
    WORKING,
    checkpoints,
    choose,
    flaw,
    publish,
    recover,
    rotate,
    write_manifest,
)
from grpo_ext.checkpoints.values import Stateful, copied, pack, unpack

__all__ = [
    "LAST",
    "MANIFEST",
    "TRAINER_STATE",
    "WORKING",
    "Stateful",
    "checkpoints",
    "choose",
    "copied",
    "cut_short",
    "estimated",
    "flaw",
    "free",
    "held",
    "pack",
    "publish",
    "recover",
    "rotate",
    "size",
    "unpack",
    "why_unwritten",
    "write_manifest",
]
