"""A train stage whose inputs are made by the library's own functions in this very process.

That saves a test the start of two children; the teacher is opened by the engine `transformers`,
and scores the rows' own answers, so that each of them ends as it should.
"""

import json
from pathlib import Path
from typing import Any

from retort.events import SILENT
from retort.stages.curate import curate
from retort.stages.generate.capture import capture
from retort.stages.prepare import prepare
from retort.stages.stage import Stage
from retort.store import Artifact
from tests.support.stages import stage_of


def job(folder: Path, teacher: Path, student: Path, **train: Any) -> dict[str, Any]:
    """A job of sixteen sums with worked answers, whose rows it writes into the folder."""
    for split, numbers in {"train": range(16), "validation": range(30, 34), "test": [40]}.items():
        rows = (
            {
                "id": f"{split}-{n}",
                "question": f"{n} + 7 = ?",
                "answer": f"{n} and 7 is\n#### {n + 7}",
            }
            for n in numbers
        )
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "name": "sums",
        "prepare": {
            **{split: str(folder / f"{split}.jsonl") for split in ("train", "validation", "test")},
            "deduplicate": {"exact": False, "near": False},
            "decontaminate": {"enabled": False},
        },
        "generate": {
            "teacher": str(teacher),
            "engine": "transformers",
            "mode": "score",
            "max_model_len": 128,
            "runtime": {"num_threads": 1},
        },
        "curate": {"filters": ["non_empty"]},
        "train": {"student": str(student), "batch_size": 8, **train},
    }


def made(raw: dict[str, Any], folder: Path) -> Stage:
    """A train stage whose job has been prepared, asked and curated in a store of its own."""
    inputs: dict[str, Artifact] = {}
    store = str(folder / "store")
    for name, function in (("prepare", prepare), ("generate", _captured), ("curate", curate)):
        stage = stage_of(name, raw, store, inputs)
        stage.out.commit({"facts": function(stage)})
        inputs[name] = stage.out.finished()
    return stage_of("train", raw, store, inputs)


def _captured(stage: Stage) -> dict[str, Any]:
    return capture(stage.arguments(), "test", 16, SILENT)
