"""`generate.runtime.replicas` on a server: three workers answer one job's rows, one is lost.

The surprise: the teacher answers nobody until all three ask, so that each is known to take part.
"""

import pytest

from retort.storage import open_store
from tests import workers
from tests.stages import segments

AT_ONCE, REPLICAS, PILOT_ROWS = 2, 3, 16


@pytest.fixture
def day(tmp_path, mlflow_url):
    with workers.day(tmp_path, str(tmp_path / "store"), mlflow_url, gpus=REPLICAS) as found:
        yield found


def at_work(worker):
    """What the processes below a worker were started for."""
    return " ".join(word for each in worker.children(recursive=True) for word in each.cmdline())


def helping(day):
    return workers.runs_of(day.api, "replica")


def test_three_workers_share_a_job_and_one_is_killed(day):
    knobs = [f"replicas={REPLICAS}", f"max_concurrency={AT_ONCE}"]
    spec = day.job("shared", *(f"generate.runtime.{knob}" for knob in knobs))
    day.teacher.left["shared"] = PILOT_ROWS
    day.teacher.waits.add("shared")
    with (
        day.worker("one", limit=1) as one,
        day.worker("two", limit=1) as two,
        day.worker("three", limit=1) as three,
    ):
        run = workers.start(day.api, spec)
        workers.until(
            lambda: day.teacher.num_waiting == AT_ONCE * REPLICAS,
            lambda: workers.lines(day.api, run),
        )
        helper = next(each for each in (one, two, three) if "help_capture" in at_work(each))
        workers.kill(helper)
        day.teacher.waits.remove("shared")
        states = workers.completed(day.api, run)
        helpers = [workers.call(day.api, "GET", f"/flow_runs/{run}") for run in helping(day)]
        said = workers.lines(day.api, run)
    assert states["generate"] == "Completed"
    assert "generate: 2 replicas were asked to help" in said
    assert sorted(run["state_type"] for run in helpers) == ["CANCELLING", "COMPLETED"]
    asked = day.asked()
    times = day.teacher.answers("shared", asked)
    # What the lost worker waited for is asked again, and nothing else.
    assert min(times) == 1 and sum(times) <= len(asked) + AT_ONCE
    keys = [entry["key"] for entry in segments(day.store)]
    assert len(set(keys)) == len(keys) == len(asked)
    names = open_store(day.store).job("shared").read_json("artifacts.json")
    facts = open_store(day.store).artifact("generate", names["generate"]).read_json("manifest.json")
    assert facts["facts"]["num_asked"] == len(asked)
