"""One Prefect task per stage and control: name, retries and log lines around retort's functions."""

from tasks.stages import curate, evaluate, generate, prepare, release, report, train, train_control

__all__ = [
    "curate",
    "evaluate",
    "generate",
    "prepare",
    "release",
    "report",
    "train",
    "train_control",
]
