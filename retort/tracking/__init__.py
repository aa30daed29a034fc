"""MLflow: what was done, with what, how it went, and which student is out. The only door to mlflow.

A tracking server that fails is reported once and never stops a job; a command about the registry
alone says so and ends.
"""

from retort.tracking.promotion import Outcome, open_registry, promote, rollback
from retort.tracking.registry import NONE, ReleasedStudent, Version
from retort.tracking.runs import Tracker
from retort.tracking.server import tracking_uri, without_secrets

__all__ = [
    "NONE",
    "Outcome",
    "ReleasedStudent",
    "Tracker",
    "Version",
    "open_registry",
    "promote",
    "rollback",
    "tracking_uri",
    "without_secrets",
]
