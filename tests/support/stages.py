"""Runs the first stages of a job as Prefect's tasks would, without Prefect and MLflow."""

from pathlib import Path
from typing import Any

from retort.events import SILENT, Reporter
from retort.jobs.source_digests import source_digests
from retort.records import Response
from retort.spec import STAGES, build, recipes
from retort.stages.generate import generate
from retort.stages.prepare import prepare
from retort.stages.stage import Stage, read_responses
from retort.store import Folder, open_store

RUNTIME = {"max_num_seqs": 4, "num_threads": 1}
# Those of every job: only some expand their prompts, cut a student from its teacher, or export it.
EVERY_STAGE = tuple(stage for stage in STAGES if stage not in ("expand", "cut", "export"))


def job(teacher: Path | str, train: Path, engine: str, **knobs: Any) -> dict[str, Any]:
    """A spec whose generate section is given; every row is asked, and nothing is judged unless
    asked for."""
    held_out = Path(train).parent / "held-out.jsonl"
    held_out.write_text('{"id": "held-out", "messages": [{"role": "user", "content": "?"}]}\n')
    section = {"top_k": 0, "min_success_ratio": 0.0, "runtime": RUNTIME, **knobs}
    return {
        "name": "tiny",
        "prepare": {
            "task_type": section.pop("task_type", "qa"),
            "train": str(train),
            "test": str(held_out),
            "deduplicate": {"exact": False, "near": False},
            "decontaminate": {"enabled": False},
        },
        "generate": {"teacher": str(teacher), "engine": engine, **section},
        "curate": {"filters": ["non_empty"]},
        "train": {"student": str(teacher)},
    }


def run(
    raw: dict[str, Any], store: str, report: Reporter = SILENT
) -> tuple[dict[str, Any], list[Response]]:
    """Runs prepare and generate on a store; returns generate's facts and the responses."""
    first = stage_of("prepare", raw, store, {}, report)
    if not first.out.finished():
        first.out.commit({"facts": prepare(first)})
    stage = stage_of("generate", raw, store, {"prepare": first.out.finished()}, report)
    return generate(stage), read_responses(stage.out)


def run_captures(
    raw: dict[str, Any], store: str, report: Reporter = SILENT
) -> tuple[dict[str, dict[str, Any]], list[Response]]:
    """Runs prepare, the capture of each of several teachers and their union, all but what is
    finished; returns the facts of those that ran by their names, and the union's responses."""
    spec, opened = build(raw), open_store(store)
    wanted = recipes(spec, source_digests(spec))
    made: dict[str, Any] = {}
    ran = {}
    for name in ("prepare", *wanted["generate"].inputs[1:], "generate"):
        recipe = wanted[name]
        folder = opened.artifact(recipe.stage, recipe.name)
        if not folder.finished():
            inputs = {each: made[each] for each in recipe.inputs}
            log = opened.local_state() / "log"
            stage = Stage(recipe.stage, recipe.spec, opened, inputs, folder, report, log)
            ran[name] = {"prepare": prepare, "generate": generate}[recipe.stage](stage)
            folder.commit({"facts": ran[name], "ingredients": recipe.ingredients})
        made[name] = folder.finished()
    return ran, read_responses(Folder(made["generate"].uri))


def stage_of(
    name: Any, raw: dict[str, Any], store: str, inputs: dict[str, Any], report: Reporter = SILENT
) -> Stage:
    """A stage of a job, about to run."""
    spec, opened = build(raw), open_store(store)
    folder = opened.artifact(name, recipes(spec, source_digests(spec))[name].name)
    return Stage(name, spec, opened, inputs, folder, report, opened.local_state() / "log")


def num_files(store: str) -> int:
    """How many segments are in all ledgers of a store."""
    names = Folder(f"{open_store(store).uri}/ledger").files()
    return sum(name.endswith(".jsonl") for name in names)


def segments(store: str) -> list[Any]:
    """All entries in all ledgers of a store, in no order."""
    import orjson

    root = Folder(f"{open_store(store).uri}/ledger")
    names = [name for name in root.files() if name.endswith(".jsonl")]
    lines = [orjson.loads(line) for name in names for line in root.read(name).splitlines()]
    return [line for line in lines if "key" in line]  # the others hold checksums
