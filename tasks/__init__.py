"""One Prefect task per stage, control and champion: name, retries and log lines around retort's
functions."""

from tasks.stages import (
    curate,
    evaluate,
    evaluate_champion,
    generate,
    prepare,
    release,
    report,
    train_all,
)

__all__ = [
    "curate",
    "evaluate",
    "evaluate_champion",
    "generate",
    "prepare",
    "release",
    "report",
    "train_all",
]
