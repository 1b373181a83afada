"""Where a completion ends."""

from collections.abc import Container, Sequence


def length_until_end(tokens: Sequence[int], ends: Container[int]) -> int:
    """Number of tokens up to the first end token, that one included.

    Args:
        tokens: token ids of a completion.
        ends: end tokens.

    Returns:
        All of them where no end token occurs.
    """
    return next((place + 1 for place, token in enumerate(tokens) if token in ends), len(tokens))
