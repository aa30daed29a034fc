"""The errors that a user may see, by who can mend them. The command's exit code follows the class.

A message says what is wrong, where, what is allowed and what to do. It never holds a secret.
"""

import difflib
import errno
import os
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


class DamagedError(StoreError):
    """A stored file is not what was written: cut short, changed, or no JSON (exit 1)."""


class StageError(RuntimeError):
    """A stage ended without its artifact: a crash, a timeout, out of memory (exit 1)."""


class EngineDiedError(StageError):
    """The process of a stage was killed, crashed, hung or ran out of memory; a restart may help."""


USER_ERRORS = (SpecError, DataError)
# The errors that cross from a child process as what they are.
BY_NAME: dict[str, type[Exception]] = {
    kind.__name__: kind
    for kind in (SpecError, DataError, StoreError, DamagedError, StageError, EngineDiedError)
}
# What a disk refuses, by errno, and what to do about it.
REMEDIES = {
    errno.ENOSPC: "no space left on the device; free some, or use another disk ({remedy})",
    errno.EDQUOT: "the quota of this user is used up; free some, or use another disk ({remedy})",
    errno.EROFS: "the file system is read-only; remount it, or use another disk ({remedy})",
}


def disk_cause(error: BaseException, remedy: str) -> str | None:
    """Returns what a disk refused and what to do, or None for another error. `remedy` names the
    option or variable that chooses another disk."""
    number = error.errno if isinstance(error, OSError) else None
    if os.strerror(errno.ENOSPC) in str(error):  # safetensors and torch have errors of their own
        number = errno.ENOSPC
    return REMEDIES[number].format(remedy=remedy) if number in REMEDIES else None


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """Returns " (did you mean 'x'?)" for the nearest allowed name, or an empty string."""
    near = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.6)
    return f" (did you mean '{near[0]}'?)" if near else ""
