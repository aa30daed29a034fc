"""Models on real requests: what a challenger, the champion and the log answer, and whether today's
requests are still those of the training."""

from retort.jobs.shadow.compare import Shadow, ShadowRequest, shadow
from retort.jobs.shadow.drift import ALARM, Drift, drift_of
from retort.jobs.shadow.sample import Sample

__all__ = ["ALARM", "Drift", "Sample", "Shadow", "ShadowRequest", "drift_of", "shadow"]
