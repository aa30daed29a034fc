"""`generate.runtime.replicas` on a server: three workers answer one job's rows, one of them is lost.

The surprise: the teacher answers nobody until all three ask, so that each is known to take part.
"""

import pytest

from retort.storage import open_store
from tests import workers
from tests.stages import segments

AT_ONCE, REPLICAS = 2, 3


@pytest.fixture
def day(tmp_path, mlflow_url):
    with workers.day(tmp_path, str(tmp_path / "store"), mlflow_url, gpus=REPLICAS) as found:
        yield found


def at_work(worker):
    """What the processes below a worker were started for."""
    return " ".join(word for each in worker.children(recursive=True) for word in each.cmdline())


def test_three_workers_share_a_job_and_one_is_killed(day):
    knobs = [f"replicas={REPLICAS}", f"max_concurrency={AT_ONCE}"]
    spec = day.job("shared", *(f"generate.runtime.{knob}" for knob in knobs))
    day.teacher.waits.add("shared")
    with (
        day.worker("one", limit=1) as one,
        day.worker("two", limit=1) as two,
        day.worker("three", limit=1) as three,
    ):
        run = workers.start(day.api, spec)
        all_ask = AT_ONCE * REPLICAS
        workers.until(
            lambda: day.teacher.seen.num_active == all_ask, lambda: workers.lines(day.api, run)
        )
        helper = next(each for each in (one, two, three) if "help_capture" in at_work(each))
        workers.kill(helper)
        day.teacher.waits.remove("shared")
        del day.teacher.left["shared"]
        states = workers.completed(day.api, run)
        replicas = workers.runs_of(day.api, "replica")
        workers.until(lambda: workers.ended(day.api, replicas[0]))
    assert states["generate"] == "Completed"
    asked = day.asked()
    assert set(day.teacher.answers("shared", asked)) == {1}
    keys = [entry["key"] for entry in segments(day.store)]
    assert len(set(keys)) == len(keys) == len(asked)
    names = open_store(day.store).job("shared").read_json("artifacts.json")
    facts = open_store(day.store).artifact("generate", names["generate"]).read_json("manifest.json")
    assert facts["facts"]["num_asked"] == len(asked)
