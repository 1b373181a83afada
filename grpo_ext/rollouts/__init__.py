"""How the completions of a group come to be."""
