"""What every export holds beside its model: the student's tokenizer and small settings."""

import shutil
from pathlib import Path

from retort.store import model_folder


def copy_small_files(student: Path, out: Path, *, without: tuple[str, ...] = ()) -> None:
    """Copies a student's tokenizer, chat template and configuration; `without` are names left."""
    for pattern in model_folder.SMALL_FILES:
        for path in student.glob(pattern):
            if path.name not in without and not path.name.endswith(".index.json"):
                shutil.copyfile(path, out / path.name)
