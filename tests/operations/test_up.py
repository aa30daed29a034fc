"""`retort up`: one command on one machine; what it has made is there when it is started again."""

import subprocess
import time
import urllib.error

import pytest
from mlflow import MlflowClient

from retort import RetortClient
from retort.errors import SpecError, StageError
from retort.spec import load
from tests.conftest import ask
from tests.support.servers import BIN, free_port
from tests.support.tiny import write_job
from tests.support.upping import up

SLOT = {"names": ["gpu"], "slots": 1, "lease_duration": 300}


def until(jobs, name, *wanted):
    """Waits until a job has one of these states, or has come to this stage."""
    deadline = time.monotonic() + 180
    while (state := jobs.get(name)).status not in wanted and state.stage not in wanted:
        assert not state.is_over and time.monotonic() < deadline, state
        time.sleep(0.3)
    return state


def test_the_day_of_a_job_on_one_machine(tmp_path, monkeypatch):
    ports = {"prefect": free_port(), "mlflow": free_port()}
    api = f"http://127.0.0.1:{ports['prefect']}/api"
    spec = load(write_job(tmp_path, "echo"))[0]
    long = load(write_job(tmp_path / "long", "echo", num_epochs=100_000), ["name=long"])[0]
    with up(tmp_path, ports) as known:
        # The client reads the login of the servers from the store; MLflow's reads the environment.
        jobs = RetortClient(api, str(tmp_path / ".retort")).jobs
        login = known["PREFECT_API_AUTH_STRING"]
        for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
            monkeypatch.setenv(name, known[name])
        is_started_once_runs_and_is_told_of(jobs, spec)
        assert jobs.get("tiny").store == str(tmp_path / ".retort")
        assert (tmp_path / ".retort/jobs/tiny/report.md").is_file()
        what_the_page_would_send_is_checked_before_it_is_scheduled(api, login, spec)
        holds_the_machine_and_is_cancelled_with_its_processes_and_in_mlflow(
            jobs, long, api, login, ports["mlflow"]
        )
        taken = subprocess.run(
            [str(BIN / "retort"), "up", f"--prefect-port={ports['prefect']}"],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            check=False,
        )
        assert taken.returncode == 2
        assert "is taken" in taken.stderr and "--prefect-port" in taken.stderr
        lease = ask(f"{api}/v2/concurrency_limits/increment-with-lease", SLOT, login)["lease_id"]
    with up(tmp_path, ports) as again:
        assert again == known  # a browser that knows the password goes on
        assert {state.name: state.status for state in jobs.list()} == {
            "tiny": "completed",
            "long": "cancelled",
        }
        deployments = ask(f"{api}/deployments/filter", {}, login)
        flows = sorted(each["entrypoint"].rpartition(".")[2] for each in deployments)
        assert flows == ["distill", "plan", "sweep"]
        # Its holder can go on, or it runs out; it does not last for ever.
        renew = f"{api}/v2/concurrency_limits/leases/{lease}/renew"
        assert ask(renew, {"lease_duration": 60}, login) is None
    for server in ports:
        assert "database is locked" not in (tmp_path / f".retort/logs/{server}.log").read_text()


def is_started_once_runs_and_is_told_of(jobs, spec):
    state = jobs.create_or_update(spec)
    assert jobs.create_or_update(spec).run_id == state.run_id
    other = spec.model_copy(update={"train": spec.train.model_copy(update={"seed": 1})})
    with pytest.raises(StageError, match="with another spec; cancel it first"):
        jobs.create_or_update(other)
    lines = list(jobs.stream("tiny"))
    assert any("train: " in line for line in lines)
    assert lines[-1] == "Finished in state Completed()"  # none is lost that comes after the end
    ended = jobs.get("tiny")
    assert (ended.status, ended.error) == ("completed", None)
    assert jobs.report("tiny").content["name"] == "tiny"
    with pytest.raises(SpecError, match="there are: tiny"):
        jobs.get("tinny")


def what_the_page_would_send_is_checked_before_it_is_scheduled(api, login, spec):
    found = ask(f"{api}/deployments/name/distill/process", None, login)
    knobs = found["parameter_openapi_schema"]["definitions"]["Train"]["properties"]
    assert "Peak step size of AdamW" in knobs["learning_rate"]["description"]
    assert knobs["schedule"]["enum"] == ["cosine", "linear", "constant"]
    wrong = spec.model_dump(mode="json")
    wrong["train"]["learning_rate"] = -1
    start = f"{api}/deployments/{found['id']}/create_flow_run"
    with pytest.raises(urllib.error.HTTPError, match="409"):
        ask(start, {"parameters": {"spec": wrong}}, login)


def holds_the_machine_and_is_cancelled_with_its_processes_and_in_mlflow(
    jobs, spec, api, login, port
):
    jobs.create_or_update(spec)
    until(jobs, "long", "train")
    # Of this store: others may train at the same time.
    children = ["pgrep", "-f", f"retort.processes retort.stages.train.* {jobs.get('long').store}/"]
    deadline = time.monotonic() + 60
    while subprocess.run(children, stdout=subprocess.DEVNULL, check=False).returncode:
        assert time.monotonic() < deadline
        time.sleep(0.3)
    limit = ask(f"{api}/v2/concurrency_limits/gpu", None, login)
    assert (limit["limit"], limit["active_slots"]) == (1, 1)
    jobs.cancel("long")
    assert until(jobs, "long", "cancelled").error is None
    assert subprocess.run(children, stdout=subprocess.DEVNULL, check=False).returncode == 1
    client = MlflowClient(f"http://127.0.0.1:{port}")
    experiment = client.get_experiment_by_name("long").experiment_id
    statuses = {run.info.run_name: run.info.status for run in client.search_runs([experiment])}
    # What came before was made by the other job, and is reused.
    assert statuses == {"long": "KILLED", "train": "KILLED"}
