"""What lies in memory when the cases begin is left alone by the collections that each short run asks for."""

import gc
import logging
import warnings
from collections.abc import Iterator

import pytest
from transformers.utils import logging as told_by_transformers


@pytest.fixture(autouse=True, scope="session")
def frozen_memory() -> Iterator[None]:
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    level = told_by_transformers.get_verbosity()
    told_by_transformers.set_verbosity_error()
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)
    told_by_transformers.set_verbosity(level)
