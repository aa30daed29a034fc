"""Slots: where a machine has room for one model, the stages with a model wait for one another."""

import os
from contextlib import AbstractContextManager, nullcontext

from prefect.concurrency.sync import concurrency

from retort.spec import StageName

# Names the server's limit.
SLOT = "RETORT_SLOT"
WITH_A_MODEL: tuple[StageName, ...] = ("generate", "curate", "train", "evaluate")


def slot(stage: StageName) -> AbstractContextManager[None]:
    """Returns what holds a slot of the limit while a stage runs; a reused one never waits."""
    limit = os.environ.get(SLOT)
    return concurrency(limit, strict=True) if limit and stage in WITH_A_MODEL else nullcontext()
