"""`retort up --database`: both servers on one Postgres, and what is said where that cannot be."""

import subprocess
from pathlib import Path

import psycopg
import pytest
from mlflow import MlflowClient

from flows import databases
from retort import RetortClient
from retort.errors import SpecError
from retort.spec import load
from tests.conftest import ask
from tests.support.postgres import needs_postgres, serving
from tests.support.servers import BIN, environment, free_port
from tests.support.tiny import write_job
from tests.support.upping import up

pytestmark = needs_postgres
# With every sign that an address, a settings file of alembic or .pgpass gives a meaning.
SECRET, WRITTEN = "let%/me:@in", "let%25%2Fme%3A%40in"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The port of a Postgres with `ann`, who owns the database `jobs`, and `eve`, who may make
    databases."""
    log = tmp_path_factory.mktemp("postgres") / "log"
    boss = {"POSTGRES_USER": "boss", "POSTGRES_PASSWORD": SECRET, "POSTGRES_DB": "boss"}
    with serving(boss, log=log) as port:
        with psycopg.connect(address(port, "boss", "boss"), autocommit=True) as connection:
            for statement in (
                f"CREATE ROLE ann LOGIN PASSWORD '{SECRET}'",
                f"CREATE ROLE eve LOGIN PASSWORD '{SECRET}' CREATEDB",
                "CREATE DATABASE jobs OWNER ann",
            ):
                connection.execute(statement)
        yield port
        assert SECRET not in log.read_text()


def address(port, user, name, password=WRITTEN):
    return f"postgresql://{user}:{password}@127.0.0.1:{port}/{name}"


def rows(port, query):
    with psycopg.connect(address(port, "ann", "jobs")) as connection:
        return [row[0] for row in connection.execute(query.encode()).fetchall()]


def test_a_job_on_postgres_is_there_after_a_restart_and_its_password_is_nowhere(
    server, tmp_path, monkeypatch
):
    ports = {"prefect": free_port(), "mlflow": free_port()}
    api, tracking = (f"http://127.0.0.1:{port}" for port in ports.values())
    spec = load(write_job(tmp_path, "echo"))[0]
    where = f"--database=postgresql://ann@127.0.0.1:{server}/jobs"
    with up(tmp_path, ports, where, PGPASSWORD=SECRET) as login:
        jobs = RetortClient(f"{api}/api", str(tmp_path / ".retort")).jobs
        for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
            monkeypatch.setenv(name, login[name])
        jobs.create_or_update(spec)
        ended = jobs.wait("tiny")
        assert ended.status == "completed", ended.error
        assert has_no_secret(*Path("/proc").glob("[0-9]*/cmdline"))
        settings = ask(f"{api}/api/admin/settings", None, login["PREFECT_API_AUTH_STRING"])
        assert SECRET not in str(settings) and WRITTEN not in str(settings)
    with up(tmp_path, ports, where, PGPASSWORD=SECRET):
        assert [(state.name, state.status) for state in jobs.list()] == [("tiny", "completed")]
        client = MlflowClient(tracking)
        experiment = client.get_experiment_by_name("tiny").experiment_id
        runs = client.search_runs([experiment])
        assert {"tiny", "generate", "train"} <= {run.info.run_name for run in runs}
        assert {run.info.status for run in runs} == {"FINISHED"}
    assert rows(server, "SELECT name FROM flow_run") == ["tiny"]
    assert len(rows(server, "SELECT run_uuid FROM mlflow.runs")) == len(runs)
    assert not list((tmp_path / ".retort").rglob("*.db"))
    assert has_no_secret(*(path for path in tmp_path.rglob("*") if path.is_file()))


def has_no_secret(*files):
    """Whether no file that can be read holds the password, as it is or as addresses have it."""
    assert files
    for path in files:
        try:
            content = path.read_bytes()
        except OSError:  # a process that has ended meanwhile
            continue
        assert SECRET.encode() not in content and WRITTEN.encode() not in content, path
    return True


def test_the_database_is_made_where_the_user_may(server):
    for _ in range(2):
        found = databases.postgres(address(server, "eve", "eves"))
    made = found.prefect["PREFECT_API_DATABASE_CONNECTION_URL"]
    assert made == f"postgresql+asyncpg://eve:{WRITTEN}@127.0.0.1:{server}/eves"
    assert WRITTEN not in repr(found)


def test_the_password_may_be_in_the_password_file(server, tmp_path, monkeypatch):
    kept = tmp_path / "pgpass"
    kept.write_text(f"127.0.0.1:{server}:jobs:ann:{SECRET.replace(':', chr(92) + ':')}\n")
    kept.chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(kept))
    found = databases.postgres(f"postgresql://ann@127.0.0.1:{server}/jobs?sslmode=disable")
    assert f"ann:{WRITTEN}@" in found.mlflow["MLFLOW_BACKEND_STORE_URI"]
    assert found.prefect["PGSSLMODE"] == "disable"


def test_whatever_is_in_the_way_is_said_with_its_remedy_and_without_the_password(server):
    for given, said in {
        address(server, "ann", "jobs", "wrong-one"): "refused this user .* PGPASSWORD",
        f"postgresql://ann@127.0.0.1:{server}/jobs": "asks for a password .* PGPASSWORD",
        address(9, "ann", "jobs"): "no connection .*start Postgres",
        address(server, "ann", "none"): 'may not make it; .*: CREATE DATABASE "none" OWNER "ann"',
        address(
            server, "ann", "boss"
        ): 'may not make what .*: ALTER DATABASE "boss" OWNER TO "ann"',
        address(server, "ann", "jobs", SECRET): "not an address of Postgres; .* are written %3A",
        address(server, "ann", "jobs", "let@in"): "not an address of Postgres",
        address(server, "ann", ""): "names no database",
        f"{address(server, 'ann', 'jobs')}?options=-csearch_path%3Dx": "options cannot be set",
        f"mysql://ann:{WRITTEN}@127.0.0.1/jobs": "allowed is postgresql://USER@HOST:PORT/NAME",
    }.items():
        with pytest.raises(SpecError, match=said) as refused:
            databases.postgres(given)
        for part in (SECRET, WRITTEN, "wrong-one", "let@in", "%/me"):
            assert part not in str(refused.value)


def test_the_command_ends_before_anything_is_started(server, tmp_path):
    done = subprocess.run(
        [str(BIN / "retort"), "up", f"--database=postgresql://ann@127.0.0.1:{server}/none"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment(PGPASSWORD=SECRET),
        check=False,
    )
    assert done.returncode == 2
    assert "there is no database none" in done.stderr and "Traceback" not in done.stderr
