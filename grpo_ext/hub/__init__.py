"""Sharing a run: its model card, and an upload that nothing private is part of and that loses nothing."""

from grpo_ext.hub.private import without_token
from grpo_ext.hub.push import Target, push_run
from grpo_ext.hub.takeover import take_over

__all__ = ["Target", "push_run", "take_over", "without_token"]
