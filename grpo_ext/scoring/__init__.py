"""Log-probabilities and entropies of completions, without the (B, T, V) logits."""
