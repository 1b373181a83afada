"""Data sets as prompts with gold answers, from a folder, from the hub, or made here."""
