"""The user's day on a server with SQLite: a job twice at once, a GPU that is shared, a schedule."""

import hashlib
import json
import shutil
from collections import Counter

import pytest

from tests.support import workers
from tests.support.tiny import write_rows
from tests.support.workers import call, completed, start, until

STAGES = ("prepare", "generate", "curate", "train", "evaluate", "report", "release")
EVERY_SECONDS = 15


@pytest.fixture(scope="module")
def day(tmp_path_factory, mlflow_url):
    folder = tmp_path_factory.mktemp("day")
    with workers.day(folder, str(folder / "store"), mlflow_url) as found:
        yield found


@pytest.fixture(scope="module")
def made(day):
    """The job `nightly`, made by two runs at once."""
    spec = day.job("nightly")
    with day.worker("both"):
        runs = [start(day.api, spec), start(day.api, spec)]
        return spec, runs, [completed(day.api, run) for run in runs]


@pytest.fixture(scope="module")
def worker(day, made):
    """A worker whose machine has room for one model."""
    with day.worker("worker", RETORT_SLOT="gpu") as started:
        yield started


def test_two_runs_of_a_job_at_once_make_one_result(day, made):
    _, runs, states = made
    for stage in STAGES:
        assert sorted(found[stage] for found in states) == ["Cached", "Completed"], stage
    folders = list((day.folder / "store/artifacts").glob("*/*/manifest.json"))
    assert Counter(path.parts[-3] for path in folders) == dict.fromkeys(STAGES, 1)
    for path in folders:
        for name, facts in json.loads(path.read_text())["files"].items():
            data = (path.parent / name).read_bytes()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (
                facts["bytes"],
                facts["sha256"],
            )
    assert set(day.teacher.answers("nightly", day.asked())) == {1}
    tables = [artifact(day.api, run, "comparison") for run in runs]
    assert tables[0] == tables[1]


def artifact(api, run, key):
    wanted = {"artifacts": {"flow_run_id": {"any_": [run]}, "key": {"any_": [key]}}}
    (found,) = call(api, "POST", "/artifacts/filter", wanted)
    return json.loads(found["data"])


def test_new_rows_alone_are_asked_and_others_wait_for_the_gpu_but_not_for_the_cache(
    day, made, worker
):
    api, teacher, data = day.api, day.teacher, day.folder / "data"
    shutil.copy(data / "train.jsonl", data / "yesterday.jsonl")
    more = append(data, 6)
    teacher.left["nightly"] = 1
    teacher.waits.add("nightly")
    first = start(api, made[0])
    until(lambda: sum(teacher.answers("nightly", more)) == 1)

    second = start(api, day.job("second", "prepare.limit=8"))
    begun = {"prepare": "Completed", "generate": "Running"}
    until(lambda: workers.tasks(api, second) == begun)
    waits = "generate: waiting for a slot of the limit gpu: other runs have them all"
    until(lambda: waits in workers.lines(api, second))
    cached = start(api, day.job("nightly", f"prepare.train={data / 'yesterday.jsonl'}"))
    assert completed(api, cached) == dict.fromkeys(STAGES, "Cached")
    assert call(api, "GET", "/v2/concurrency_limits/gpu")["active_slots"] == 1
    assert workers.tasks(api, second) == begun
    assert not [text for model, text in teacher.given if model == "second"]

    teacher.waits.remove("nightly")
    del teacher.left["nightly"]
    assert completed(api, first) == dict.fromkeys(STAGES, "Completed")
    assert set(teacher.answers("nightly", day.asked())) == {1}
    until(lambda: workers.tasks(api, second)["generate"] == "Completed")
    workers.cancel(api, second)


def append(data, number):
    """Appends rows to the training file; what they ask."""
    more = write_rows(data / f"more-{number}.jsonl", number, seed=number)
    with (data / "train.jsonl").open("a") as stream:
        stream.write(more.read_text())
    return workers.questions(more)


def test_a_schedule_is_cached_through_without_new_rows_and_asks_only_those(day, made, worker):
    night = completed(day.api, scheduled(day.api, made[0]))
    assert night == dict.fromkeys(STAGES, "Cached")
    append(day.folder / "data", 4)
    night = completed(day.api, scheduled(day.api, made[0]))
    assert night == dict.fromkeys(STAGES, "Completed")
    assert set(day.teacher.answers("nightly", day.asked())) == {1}


def scheduled(api, spec):
    """The run that the server starts by a schedule, which is active until then."""
    place = f"/deployments/{workers.deployment(api)}/schedules"
    every = {"schedule": {"interval": EVERY_SECONDS}, "active": True}
    given = {**every, "parameters": {"spec": spec.model_dump(mode="json")}}
    (made,) = call(api, "POST", place, [given])
    # At a deployment that has just changed the server looks at once, at others once a minute.
    call(api, "PATCH", place.removesuffix("/schedules"), {"paused": False})
    under_way = {"type": {"any_": ["PENDING", "RUNNING"]}}
    wanted = {"flow_runs": {"tags": {"all_": ["auto-scheduled"]}, "state": under_way}}
    (run, *_) = until(lambda: call(api, "POST", "/flow_runs/filter", wanted))
    call(api, "DELETE", f"{place}/{made['id']}")
    return run["id"]
