"""The errors that a user may see, by who can mend them. The command's exit code follows the class.

A message says what is wrong, where, what is allowed and what to do. It never holds a secret.
"""

import difflib
from collections.abc import Iterable


class SpecError(ValueError):
    """The job spec, or a model or path in it, cannot be used. The user mends it (exit 2)."""


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
    """The process of a stage was killed, crashed, hung or ran out of memory; a restart may help."""


USER_ERRORS = (SpecError, DataError)


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """Returns " (did you mean 'x'?)" for the nearest allowed name, or an empty string."""
    near = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.6)
    return f" (did you mean '{near[0]}'?)" if near else ""
