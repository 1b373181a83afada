"""Completions from vLLM, in this process or on stock servers, with the LoRA adapter swapped in."""
