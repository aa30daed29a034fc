"""The user's day on a server with Postgres, workers and an S3 store: a stage fails, a run is
cancelled, a machine is gone. What was finished is never done again, and every page says how things
stand.

Note: one job's machine is killed before the other tests begin, and its run is looked at
after them, for the server notices only after a minute without a sign of life.
"""

import fsspec
import psutil
import pytest
from aiohttp import web
from mlflow import MlflowClient

from flows import databases
from tests.support import workers
from tests.support.misbehaving import running
from tests.support.postgres import FOUND, serving
from tests.support.workers import BEAT_SECONDS

STAGES = ("prepare", "generate", "curate", "train", "evaluate", "report", "release")


@pytest.fixture(scope="module")
def pager():
    """What was posted to the address that is told of failures, and the address."""
    told: list[str] = []

    async def take(request):
        told.append((await request.json())["text"])
        return web.Response()

    app = web.Application()
    app.router.add_post("/secret", take)
    with running(app) as url:
        yield told, f"{url.removesuffix('/v1')}/secret"


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """What leads the server to a Postgres of its own; nothing where there is none here."""
    if not FOUND:
        yield {}
        return
    boss = {"POSTGRES_USER": "boss", "POSTGRES_PASSWORD": "secret", "POSTGRES_DB": "jobs"}
    with serving(boss, log=tmp_path_factory.mktemp("postgres") / "log") as port:
        yield databases.postgres(f"postgresql://boss:secret@127.0.0.1:{port}/jobs").prefect


@pytest.fixture(scope="module")
def day(tmp_path_factory, s3, mlflow_url, pager, database):
    folder = tmp_path_factory.mktemp("day")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETORT_NOTIFY_URL", pager[1])
        with workers.day(
            folder, "s3://retort/day", mlflow_url, 2 * BEAT_SECONDS, **database
        ) as found:
            yield found


@pytest.fixture(scope="module")
def lost(day, s3):
    """The run of a machine that is gone, while its teacher had answered 20 rows."""
    day.teacher.left["lost"] = 20
    day.teacher.waits.add("lost")
    with day.worker("lost", **s3) as worker:
        run = workers.start(day.api, day.job("lost"))
        workers.until(lambda: num_committed(s3) == 20, lambda: workers.lines(day.api, run))
        workers.kill(worker)
    # Who is let go on before the teacher sees that they are gone would be answered.
    workers.until(lambda: day.teacher.num_waiting == 0)
    day.teacher.waits.remove("lost")
    del day.teacher.left["lost"]
    return run


def num_committed(s3):
    """How many answers are in the ledgers of the store."""
    files = fsspec.filesystem(
        "s3",
        endpoint_url=s3["AWS_ENDPOINT_URL"],
        key=s3["AWS_ACCESS_KEY_ID"],
        secret=s3["AWS_SECRET_ACCESS_KEY"],
        use_listings_cache=False,
    )
    segments = files.glob("retort/day/ledger/*/segments/*.jsonl")
    return sum(files.cat_file(name).count(b'{"key":') for name in segments)


@pytest.fixture(scope="module")
def worker(day, s3, lost):
    with day.worker("worker", **s3) as started:
        yield started


def test_bad_data_is_told_with_its_file_and_line(day, worker):
    data = day.folder / "bad.jsonl"
    data.write_text('{"question": "1 + 1 = ?", "answer": "2"}\n' + '{"question": 7\n' * 9)
    run = workers.start(day.api, day.job("bad", f"prepare.train={data}"))
    state = workers.ended(day.api, run)
    assert state["name"] == "Failed"
    assert "bad.jsonl:2" in state["message"]


def test_a_cancelled_run_ends_its_processes_and_keeps_what_was_answered(day, worker):
    day.teacher.left["day"] = 20
    day.teacher.waits.add("day")
    run = workers.start(day.api, day.job("day"))
    workers.until(lambda: sum(day.teacher.answers("day", day.asked())) == 20)
    processes = worker.children(recursive=True)
    assert any("retort.stages.generate" in word for each in processes for word in each.cmdline())
    assert workers.cancel(day.api, run)["name"] == "Cancelled"
    workers.until(lambda: not any(map(psutil.Process.is_running, processes)))
    assert workers.in_mlflow(day.mlflow, "day") == {
        ("day", "KILLED"): 1,
        ("generate", "KILLED"): 1,
    }


def test_a_failed_run_says_what_to_do_and_a_retry_goes_on(day, worker, pager):
    day.teacher.waits.remove("day")
    day.teacher.gone.add("day")
    day.teacher.left["day"] = 20
    run = workers.start(day.api, day.job("day"))
    state = workers.ended(day.api, run)
    assert state["name"] == "Failed"
    assert "StageError: 40 of 56 responses are accepted" in state["message"]
    workers.until(lambda: any(f"{run}" in text for text in pager[0]), lambda: str(pager[0]))
    (text,) = (text for text in pager[0] if run in text)
    assert "Retort: day Failed" in text and "40 of 56 responses are accepted" in text
    told = {"prepare": "Cached", "generate": "Failed"}
    workers.until(lambda: workers.tasks(day.api, run) == told)

    workers.until(lambda: workers.is_left(day.api, run))
    day.teacher.gone.remove("day")
    workers.retry(day.api, run)
    done = workers.completed(day.api, run)
    assert done == {**dict.fromkeys(STAGES, "Completed"), "prepare": "Cached"}
    assert set(day.teacher.answers("day", day.asked())) == {1}
    assert workers.in_mlflow(day.mlflow, "day") == {
        **{(stage, "FINISHED"): 1 for stage in ("day", *STAGES[1:])},
        ("generate", "FAILED"): 1,
        ("day", "KILLED"): 1,
        ("generate", "KILLED"): 1,
    }


def test_a_stage_is_run_again_and_what_a_lost_run_left_in_mlflow_is_ended(day, worker):
    leave_running(day, "day")
    run = workers.start(day.api, day.job("day"), force=["train"])
    done = workers.completed(day.api, run)
    assert [done[stage] for stage in STAGES[:3]] == ["Cached"] * 3
    assert done["train"] == "Completed"
    assert set(day.teacher.answers("day", day.asked())) == {1}
    counts = workers.in_mlflow(day.mlflow, "day")
    assert (counts["day", "KILLED"], counts["generate", "KILLED"]) == (2, 2)
    assert not [name for name, status in counts if status == "RUNNING"]


def leave_running(day, job):
    """Leaves in MLflow what a machine leaves that is lost in `generate`, of a run that is over."""
    cancelled = {"flow_runs": {"state": {"type": {"any_": ["CANCELLED"]}}}}
    (over,) = workers.call(day.api, "POST", "/flow_runs/filter", cancelled)
    client = MlflowClient(day.mlflow)
    experiment = client.get_experiment_by_name(job).experiment_id
    tags = {"prefect.flow_run_id": over["id"], "retort.stage": "job"}
    parent = client.create_run(experiment, run_name=job, tags=tags).info.run_id
    tags = {"retort.stage": "generate", "mlflow.parentRunId": parent}
    client.create_run(experiment, run_name="generate", tags=tags)


def test_the_run_of_a_machine_that_is_gone_is_crashed_and_goes_on_elsewhere(day, worker, lost):
    state = workers.ended(day.api, lost)
    assert (state["name"], state["type"]) == ("Crashed", "CRASHED")
    assert workers.in_mlflow(day.mlflow, "lost") == {
        ("lost", "RUNNING"): 1,
        ("prepare", "FINISHED"): 1,
        ("generate", "RUNNING"): 1,
    }
    workers.retry(day.api, lost)
    done = workers.completed(day.api, lost)
    assert done == {**dict.fromkeys(STAGES, "Completed"), "prepare": "Cached"}
    assert set(day.teacher.answers("lost", day.asked())) == {1}
    assert workers.in_mlflow(day.mlflow, "lost") == {
        **{(stage, "FINISHED"): 1 for stage in ("lost", *STAGES)},
        ("generate", "KILLED"): 1,
    }
