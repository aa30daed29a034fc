"""One Prefect task per stage: its name, retries and log lines around one function of retort."""

from tasks.stages import curate, evaluate, generate, prepare, release, report, train

__all__ = ["curate", "evaluate", "generate", "prepare", "release", "report", "train"]
