"""How good a model is: answers to held-out problems, kept on disk, with pass@k, maj@k and their noise."""
