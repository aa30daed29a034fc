"""Trials of a tiny job: nested subsets, validation scores, and what is shared and cached."""

import json
from pathlib import Path

import pytest

from retort.errors import DataError, SpecError
from retort.jobs import trials
from retort.jobs.cleanup.reading import jobs_of
from retort.jobs.run import JobRun
from retort.records import Response, content_id, read_lines
from retort.spec import load
from retort.store import Folder, InputFolder, open_store
from tests.support.tiny import write_job


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A job whose 48 training rows are asked; the engine only repeats."""
    folder = tmp_path_factory.mktemp("trials")
    write_job(folder, engine="echo", num_epochs=1)
    job = job_of(folder)
    made = {}
    for name in ("prepare", "generate", "curate"):
        made[name] = trials.cached_or_made(job, name, dict(made))
    return folder


def job_of(folder: Path, heard: list[tuple[str, str]] | None = None) -> JobRun:
    store, spec = open_store(str(folder / "store")), load(folder / "job.yaml")[0]

    def listen(name: str, event) -> None:
        if heard is not None and event["kind"] in ("done", "cached"):
            heard.append((name, event["kind"]))

    return JobRun(spec, store, [], listen, "plan")


def learned(trial: trials.Trial) -> list[str]:
    """The questions in the audit of the masks, of four rows at most, in order."""
    text = InputFolder(trial.train.uri).read("mask_audit.txt").decode()
    return [line.split()[1] for line in text.splitlines() if line.startswith("example ")]


def test_a_trial_learns_from_a_nested_subset_and_is_scored_on_validation_and_cached(folder):
    heard: list[tuple[str, str]] = []
    job = job_of(folder, heard)
    inputs = trials.stored(job)
    few = trials.run(job, "few", trials.varied(job.spec, max_examples=3), inputs)
    more = trials.run(job, "more", trials.varied(job.spec, max_examples=4), inputs)
    assert (few.num_train, more.num_train) == (3, 4)
    ids = [r.example_id for r in responses(inputs) if r.example_id.startswith("train-")]
    assert len(ids) == 48
    first = sorted(ids, key=content_id)[:4]
    assert set(learned(few)) < set(learned(more))
    assert {name.split("#")[0] for name in learned(more)} == set(first)

    questions = [json.loads(line) for line in (folder / "data/validation.jsonl").open()]
    assert set(few.statistics) == {row["id"] for row in questions}
    # The engine repeats "a + b = ?", whose last number is b: right where a is 0, so never.
    assert few.metric == "accuracy"
    assert set(map(tuple, few.statistics.values())) == {(0.0, 1.0)}
    assert len(few.validation_losses) == 1
    assert few.seconds > 0

    heard.clear()
    again = trials.run(job_of(folder, heard), "few", few.spec, inputs)
    assert again == few
    assert set(heard) == {("train-few", "cached"), ("evaluate-few", "cached")}


def test_the_whole_is_the_jobs_own_training_and_a_cleanup_keeps_what_the_plan_used(folder):
    job = job_of(folder)
    inputs = trials.stored(job)
    spec = trials.varied(job.spec)
    whole = trials.run(job, "all", spec, inputs)
    assert whole.train.name == job.recipes["train"].name
    used = [record.artifacts for record in jobs_of(job.store)]
    assert {"train-all", "evaluate-all"} <= {label for names in used for label in names}


def test_a_trial_never_asks_the_teacher(folder, tmp_path):
    job = job_of(folder)
    inputs = trials.stored(job)
    other = job.spec.model_copy(
        update={"generate": job.spec.generate.model_copy(update={"temperature": 0.5})}
    )
    with pytest.raises(SpecError, match="generate: a trial learns from the answers"):
        trials.run(job, "asks", other, inputs)
    write_job(tmp_path, engine="echo")
    with pytest.raises(DataError, match="retort run"):
        trials.stored(job_of(tmp_path))


def responses(inputs) -> list[Response]:
    generated = Folder(inputs["generate"].uri)
    names = [name for name in generated.files() if name.startswith("responses-")]
    return [r for name in names for r in read_lines(Response, generated.read(name))]
