"""The random states of every library in use, put back after something that draws from them or seeds them."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch


def random_states() -> Callable[[], None]:
    """What puts the random states back to those of now."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None

    def put_back() -> None:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if devices is not None:
            torch.cuda.set_rng_state_all(devices)

    return put_back


@contextmanager
def random_states_kept() -> Iterator[None]:
    """Put the random states back at the end, also after an error."""
    put_back = random_states()
    try:
        yield
    finally:
        put_back()
