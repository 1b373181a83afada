"""What a config comes to before it runs: batches, tokens, steps, memory and known mistakes (`grpo-ext plan`)."""
