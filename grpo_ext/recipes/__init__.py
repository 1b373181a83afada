"""Runs from beginning to end, each a module: `python -m grpo_ext.recipes.gsm8k`."""
