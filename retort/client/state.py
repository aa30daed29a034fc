"""The state of a job, in the one form that a server and this machine both give."""

from dataclasses import dataclass
from typing import Literal

Status = Literal[
    "scheduled", "running", "completed", "failed", "cancelling", "cancelled", "crashed", "paused"
]
# After these nothing more happens by itself.
ENDS: tuple[Status, ...] = ("completed", "failed", "cancelled", "crashed")


@dataclass(frozen=True)
class JobState:
    """A job's latest run.

    `stage` is what runs, or ran last; `progress` its share done, from 0 to 1, where it is known.
    `error` says what went wrong and what to do. `store` is where its report lies; `url` its page.
    """

    name: str
    status: Status
    run_id: str
    store: str
    stage: str | None = None
    progress: float | None = None
    error: str | None = None
    url: str | None = None

    @property
    def is_over(self) -> bool:
        """Whether it has ended, well or not."""
        return self.status in ENDS
