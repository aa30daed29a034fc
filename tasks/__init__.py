"""One Prefect task per stage, control, export and champion: name, retries and log lines around
retort's functions."""

from tasks.stages import (
    curate,
    cut_student,
    evaluate,
    evaluate_champion,
    evaluate_exports,
    examples,
    export_all,
    generate_all,
    make,
    release,
    report,
    train_all,
)

__all__ = [
    "curate",
    "cut_student",
    "evaluate",
    "evaluate_champion",
    "evaluate_exports",
    "examples",
    "export_all",
    "generate_all",
    "make",
    "release",
    "report",
    "train_all",
]
