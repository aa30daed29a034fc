"""The user's day on a server with SQLite: a job of three workers, one job twice at once, jobs that
share a GPU, a schedule.
"""

import hashlib
import json
import shutil
from collections import Counter

import pytest

from retort.store import open_store
from tests.support import workers
from tests.support.stages import segments
from tests.support.tiny import write_rows
from tests.support.workers import call, completed, start, until

STAGES = ("prepare", "generate", "curate", "train", "evaluate", "report", "release")
EVERY_SECONDS = 15
AT_ONCE, REPLICAS, PILOT_ROWS = 2, 3, 16


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


def at_work(worker):
    """What the processes below a worker were started for."""
    return " ".join(word for each in worker.children(recursive=True) for word in each.cmdline())


def helping(day):
    return workers.runs_of(day.api, "replica")


def test_three_workers_share_a_job_and_one_is_killed(day, tmp_path):
    knobs = [f"replicas={REPLICAS}", f"max_concurrency={AT_ONCE}"]
    spec = day.job("shared", *(f"generate.runtime.{knob}" for knob in knobs))
    store = str(tmp_path / "store")
    # The teacher answers nobody until all three ask, so that each is known to take part.
    day.teacher.left["shared"] = PILOT_ROWS
    day.teacher.waits.add("shared")
    with (
        day.worker("one", limit=1) as one,
        day.worker("two", limit=1) as two,
        day.worker("three", limit=1) as three,
    ):
        run = start(day.api, spec, store=store)
        until(
            lambda: day.teacher.num_waiting == AT_ONCE * REPLICAS,
            lambda: workers.lines(day.api, run),
        )
        helper = next(each for each in (one, two, three) if "help_capture" in at_work(each))
        workers.kill(helper)
        day.teacher.waits.remove("shared")
        states = completed(day.api, run)
        helpers = [call(day.api, "GET", f"/flow_runs/{run}") for run in helping(day)]
        said = workers.lines(day.api, run)
    assert states["generate"] == "Completed"
    assert "generate: 2 replicas were asked to help" in said
    assert sorted(run["state_type"] for run in helpers) == ["CANCELLING", "COMPLETED"]
    asked = day.asked()
    times = day.teacher.answers("shared", asked)
    # What the lost worker waited for is asked again, and nothing else.
    assert min(times) == 1 and sum(times) <= len(asked) + AT_ONCE
    keys = [entry["key"] for entry in segments(store)]
    assert len(set(keys)) == len(keys) == len(asked)
    names = open_store(store).job("shared").read_json("artifacts.json")
    facts = open_store(store).artifact("generate", names["generate"]).read_json("manifest.json")
    assert facts["facts"]["num_asked"] == len(asked)


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
