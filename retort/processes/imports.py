"""Imports of heavy libraries, without what the garbage collector would make of them."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def heavy_imports() -> Iterator[None]:
    """Turns the garbage collector off, and hides from it what was made meanwhile.

    torch and transformers make millions of objects that stay. Looking through them again and again
    takes a sixth of the time to import them and load a first model.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
