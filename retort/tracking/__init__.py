"""MLflow: the runs of jobs, and the registry of released students. The only place of mlflow.

A tracking server that fails is reported once and never stops a job; a command about the registry
reports it and ends.
"""

from retort.tracking.promotion import Outcome, open_registry, promote, rollback
from retort.tracking.registry import NONE, ReleasedStudent, Version
from retort.tracking.runs import Tracker
from retort.tracking.server import make_database, tracking_uri

__all__ = [
    "NONE",
    "Outcome",
    "ReleasedStudent",
    "Tracker",
    "Version",
    "make_database",
    "open_registry",
    "promote",
    "rollback",
    "tracking_uri",
]
