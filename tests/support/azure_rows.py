"""Rows in the form of the Azure ML samples, and the stages run on them one after the other."""

from pathlib import Path
from typing import Any

import orjson
import yaml
from aiohttp import web

from retort.plugins import outside
from retort.spec import INPUTS, load
from retort.store import Folder
from tests.support.azure_job import JOB
from tests.support.stages import stage_of

QUESTIONS = [
    "Premise: A gull cries over the pier. Hypothesis: Birds are near.",
    "Premise: Ink dries slowly in winter. Hypothesis: Winter is long.",
    "Premise: His father sold the violin. Hypothesis: Music was made.",
    "Premise: Snow closed both mountain roads. Hypothesis: Nobody came.",
    "Premise: The clock has no hands. Hypothesis: It is noon.",
    "Premise: Every seat was taken by eight. Hypothesis: The hall was full.",
    "Premise: Wool itches on bare arms. Hypothesis: Sheep are white.",
    "Premise: Ants carried the crumbs away. Hypothesis: Crumbs were moved.",
    "Premise: A bell rang twice at dawn. Hypothesis: It was silent.",
    "Premise: Pipes froze in the cellar. Hypothesis: Water is cold.",
    "Premise: Three glasses broke at dinner. Hypothesis: Guests left early.",
    "Premise: Tea cools faster than soup. Hypothesis: Soup stays warm.",
]


def row(question: str, system: str = "be kind", **more: Any) -> dict[str, Any]:
    """A row of the sample's form; the first word says how the teacher will behave."""
    messages = [
        {"role": "system", "content": system},
        {"role": "user", "content": question},
        *more.pop("replies", []),
    ]
    return {"messages": messages, **more}


def completion(text: str, reason: str = "stop") -> web.Response:
    """A chat completion."""
    message = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": 9, "completion_tokens": 3}
    choices = [{"message": message, "finish_reason": reason}]
    return web.json_response({"choices": choices, "usage": usage})


def write_job(folder: Path, lines: list[bytes], task: str = "nli") -> Path:
    """Writes the sample's job file with rows of its own beside it."""
    job = JOB | {"data_generation_task_type": task, "training_data": "./train.jsonl"}
    job["validation_data"] = {"type": "uri_file", "path": "held.jsonl"}
    (folder / "train.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    held = row("held: Premise: The moon rose over Lima. Hypothesis: It was night.")
    (folder / "held.jsonl").write_bytes(orjson.dumps(held))
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(job))
    return path


# The limits out of the way.
EASY = ["generate.spending.pilot_rows=0", "generate.min_success_ratio=0"]
EASY += ["prepare.max_bad_ratio=1", "generate.runtime.max_concurrency=2"]


def spec_of(path: Path, url: str, *overrides: str) -> dict[str, Any]:
    """The job's sections, its teacher at an address."""
    student = str(path.parent / "student")
    spec, _ = load(path, [*EASY, *overrides], teacher=url, student=student)
    return spec.model_dump(mode="json")


def make(raw: dict[str, Any], store: str, *names: Any) -> Folder:
    """Runs stages that do not stand yet; returns the folder of the last."""
    folder = None
    for name in names:
        done = {i: stage_of(i, raw, store, {}).out.finished() for i in INPUTS[name]}
        stage = stage_of(name, raw, store, done)
        folder = stage.out
        if not folder.finished():
            folder.commit({"facts": outside(f"retort.stages.{name}:{name}")(stage)})
    assert folder
    return folder
