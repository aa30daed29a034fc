"""Students of one set of problems: their jobs, their training, and what they answer rightly."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.seeds import JOB, NUM_RESAMPLES, Scores, mean_of
from retort import metrics
from retort.data import task_types
from retort.engines import Request, transformers
from retort.jobs.run import JobRun
from retort.spec import JobSpec, load
from retort.stages.engine_settings import settings_of
from retort.stages.stage import read_examples
from retort.store import Artifact, InputFolder, open_store

Knobs = Mapping[str, Any]


def made(job: JobRun, last: str = "") -> dict[str, Artifact]:
    """Returns the artifacts of a job up to its trainings, or up to the one of that name."""
    found: dict[str, Artifact] = {}
    for name, recipe in job.recipes.items():
        if recipe.stage in ("export", "evaluate"):
            break
        inputs = {each: found[each] for each in recipe.inputs}
        found[name] = job.cached(name, inputs) or job.make(name, inputs)
        if name == last:
            break
    return found


def made_in(store: str, spec: JobSpec, last: str = "") -> dict[str, Artifact]:
    """Returns what `made` does of a job in a store, with one thread."""
    torch.set_num_threads(1)
    job = JobRun(spec, open_store(store), [], lambda stage, event: None)
    try:
        return made(job, last)
    finally:
        job.close()


def job_of(folder: Path, name: str, sections: Mapping[str, Knobs]) -> JobSpec:
    """Returns the quickstart's job with other knobs, written into a folder under that name.

    A knob of None is left out.
    """
    raw = yaml.safe_load(JOB.read_text())
    for section, knobs in {"report": {"gate": {}}, **sections}.items():
        raw[section] = {**raw.get(section, {}), **knobs}
        raw[section] = {key: value for key, value in raw[section].items() if value is not None}
    for section, key in (
        ("prepare", "train"),
        ("prepare", "validation"),
        ("prepare", "test"),
        ("generate", "teacher"),
        ("train", "student"),
    ):
        if key in raw[section] and not sections.get(section, {}).get(key):
            raw[section][key] = str(JOB.parent / raw[section][key])
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(raw | {"name": name}, sort_keys=False))
    return load(path)[0]


def trained(store: str, spec: JobSpec) -> dict[str, list[float]]:
    """Returns the accuracy of a job's student on each test problem; trains it if it is not made."""
    return accuracies(spec, made_in(store, spec, "train"), "train")


def accuracies(
    spec: JobSpec, made: Mapping[str, Artifact], name: str = "train"
) -> dict[str, list[float]]:
    """Returns the accuracy of the student of a training on each test problem, and 1, from its
    greedy answers."""
    with InputFolder(made[name].uri).local_copy("student") as folder:
        return answered(spec, InputFolder(made["prepare"].uri), str(folder))


def answered(spec: JobSpec, prepared: InputFolder, student: str) -> dict[str, list[float]]:
    """Returns the accuracy of the student in a folder on each test problem, and 1."""
    examples = list(read_examples(prepared, "test"))
    settings = replace(
        settings_of(spec, ""),
        model=student,
        temperature=0.0,
        dtype="float32",
        runtime={"device": "cpu", "max_num_seqs": 250},
    )
    engine = transformers.open_engine(settings)
    answers = engine.generate([Request(example.id, example.messages) for example in examples])
    texts = {answer.id: transformers.parse(answer.id, answer.raw).text for answer in answers}
    task_type = task_types.load(spec.prepare.task_type)
    return metrics.statistics(task_type, examples, texts, texts)["accuracy"]


def share(runs: Sequence[Scores], role: str) -> float:
    """Returns a role's accuracy, the mean over runs."""
    scores = mean_of(runs, role)
    return sum(score for score, _ in scores.values()) / len(scores)


def tell(label: str, runs: Sequence[Scores], role: str, over: str, shown: str) -> dict[str, float]:
    """Prints a line of a table with the accuracy of `shown`; returns the gain of a role over
    another, paired on test problems, with its interval."""
    own, other = mean_of(runs, role), mean_of(runs, over)
    found = metrics.difference("accuracy", own, other, NUM_RESAMPLES, seed=0)
    bounds = " to ".join(f"{100 * found[bound]:+.1f}" for bound in ("low", "high"))
    print(
        f"{label:8}{shown:22}{share(runs, shown):8.1%}{100 * found['value']:+8.1f}   {bounds}",
        flush=True,
    )
    return found
