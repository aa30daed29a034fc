"""What a store holds of a job, record by record, so that two stores can be compared."""

import hashlib
from typing import Any

import orjson

from retort.errors import StoreError
from retort.store import Folder, open_store

Records = dict[str, str]
# What each stage leaves of every row: the files' prefix, and the fields that are compared.
ROWS: dict[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "prepare": tuple(
        (f"{split}-", ("messages", "expected")) for split in ("train", "validation", "test")
    ),
    "generate": (("responses-", ("text", "state", "finish_reason")),),
    "curate": (("decisions", ("kept", "target_text", "reason")),),
    "evaluate": (("answers-", ("text", "state")),),
}
WEIGHTS = {
    "train": "student/model.safetensors",
    "export-gguf-f16": "model/model.gguf",
    "release": "model/model.safetensors",
}


def read_records(store: str, job: str = "tiny") -> Records:
    """Returns what the latest run of a job has in a store: a digest by stage, file and row's id.

    An artifact that cannot be read has no records.
    """
    found: Records = {}
    opened = open_store(store)
    try:
        names = opened.job(job).read_json("artifacts.json")
    except StoreError:
        return {}
    for stage, name in names.items():
        folder = opened.artifact(stage.partition("-")[0], name)
        if folder.finished():
            found |= {f"{stage}/{key}": value for key, value in _of_stage(stage, folder).items()}
    return found


def _of_stage(stage: str, folder: Folder) -> Records:
    found: Records = {}
    for prefix, fields in ROWS.get(stage, ()):
        for file in folder.files():
            if file.startswith(prefix) and file.endswith(".jsonl"):
                kind = file.partition("-0")[0]
                for line in folder.read(file).splitlines():
                    row = orjson.loads(line)
                    found[f"{kind}/{row['id']}"] = _digest([row.get(name) for name in fields])
    if stage in WEIGHTS:
        found["weights"] = hashlib.sha256(folder.read(WEIGHTS[stage])).hexdigest()
    if stage == "evaluate":
        for role, model in folder.read_json("scores.json")["models"].items():
            found[f"scores/{role}"] = _digest(model["metrics"])
    if stage == "report":
        compared = folder.read_json("report.json")["comparison"]
        found["comparison"] = _digest([compared["metric"], compared["gain"]])
    return found


def _digest(value: Any) -> str:
    return hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]
