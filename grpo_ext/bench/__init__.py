"""Paired timings: both sides alternate in one run, and what is printed is a ratio."""
