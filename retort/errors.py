"""What can go wrong, by who can mend it; the exit code of the command follows the class.

A message says what is wrong, where, what is allowed and what to do; it never holds a secret.
"""

import difflib
from collections.abc import Iterable


class SpecError(ValueError):
    """The job spec, or a model or path it names, cannot be used. The user mends it (exit 2)."""


class DataError(ValueError):
    """The user's data cannot be used, or too little of it remained (exit 2)."""


class StoreError(OSError):
    """The store cannot be read or written (exit 1). Retried when `transient` is true."""

    def __init__(self, message: str, transient: bool = False):
        super().__init__(message)
        self.transient = transient


class StageError(RuntimeError):
    """A stage ended without its artifact: a crash, a timeout, out of memory (exit 1)."""


class EngineDiedError(StageError):
    """A stage's process was killed, ran out of memory, hung or crashed: it may be started again."""


USER_ERRORS = (SpecError, DataError)


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """Returns " (did you mean 'x'?)" for the nearest allowed name, or an empty string."""
    near = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.6)
    return f" (did you mean '{near[0]}'?)" if near else ""
