"""The stack of docker/compose.yaml runs the quickstart, all of it on this machine.

Its servers, databases and commands are those of the file. In place of the quickstart's own models,
which take minutes, its job has tiny ones and the teacher `echo`; in place of SeaweedFS stands moto.
"""

import re
import shutil
import socket
import urllib.error
import urllib.request

import boto3
import psycopg
import pytest

from tests.support.postgres import needs_postgres
from tests.support.stack import HOST, JOB, running
from tests.support.stages import EVERY_STAGE
from tests.support.tiny import write_job
from tests.support.upping import is_listening

pytestmark = [
    needs_postgres,
    pytest.mark.skipif(shutil.which("redis-server") is None, reason="there is no Redis here"),
]


def test_the_quickstart_goes_through_every_service_of_the_stack(tmp_path):
    with running(tmp_path) as stack:
        job = write_job(stack.app / "examples" / JOB, "echo")
        job.write_text(job.read_text().replace("name: tiny", f"name: {JOB}", 1))
        who_has_no_password_is_refused(stack)
        said = stack.run(JOB)
        assert f"{JOB} completed" in said and "train: done" in said
        what_was_made_is_in_the_store_and_in_postgres(stack)
        again = stack.run(JOB)
        assert f"{JOB} completed" in again
        assert set(re.findall(r"^(\w+): cached$", again, re.MULTILINE)) == set(EVERY_STAGE)
        logs = {path.name: path.read_text() for path in (tmp_path / "logs").iterdir()}
        assert stack.stop() == []
    assert [name for name, log in logs.items() if "Traceback" in log or "| ERROR" in log] == []
    assert stack.seen == set()
    assert [path for path in sorted(tmp_path.rglob("*.log")) if holds(path, stack.secrets)] == []
    assert not any(map(is_listening, stack.ports.values()))


def holds(path, secrets):
    return any(secret in path.read_text() for secret in secrets.values())


def who_has_no_password_is_refused(stack):
    prefect = f"http://{HOST}:{stack.ports['prefect']}"
    assert b"<html" in urllib.request.urlopen(prefect, timeout=30).read()
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{prefect}/api/work_pools/retort-process", timeout=30)
    mlflow = f"http://{HOST}:{stack.ports['mlflow']}"
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(mlflow, timeout=30)
    with socket.create_connection((HOST, stack.ports["redis"]), timeout=30) as redis:
        redis.sendall(b"PING\r\n")
        assert redis.recv(100).startswith(b"-NOAUTH")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(postgres(stack, "prefect", "guessed"))


def postgres(stack, name, password):
    return f"postgresql://retort:{password}@{HOST}:{stack.ports['postgres']}/{name}"


def what_was_made_is_in_the_store_and_in_postgres(stack):
    client = boto3.client(
        "s3",
        endpoint_url=f"http://{HOST}:{stack.ports['s3']}",
        aws_access_key_id=stack.secrets["S3_ACCESS_KEY"],
        aws_secret_access_key=stack.secrets["S3_SECRET_KEY"],
        region_name="us-east-1",
    )
    keys = {row["Key"] for row in client.list_objects_v2(Bucket="retort")["Contents"]}
    assert f"store/jobs/{JOB}/report.html" in keys
    made = {
        key.split("/")[2] for key in keys if re.match(r"store/artifacts/.*/manifest\.json$", key)
    }
    assert made == set(EVERY_STAGE)
    assert any(key.startswith("mlflow/") and key.endswith("report.html") for key in keys)
    password = stack.secrets["POSTGRES_PASSWORD"]
    with psycopg.connect(postgres(stack, "mlflow", password)) as connection:
        runs = connection.execute("SELECT name, status FROM runs").fetchall()
    assert {JOB, *EVERY_STAGE} <= {name for name, _ in runs}
    assert {status for _, status in runs} == {"FINISHED"}
    with psycopg.connect(postgres(stack, "prefect", password)) as connection:
        states = connection.execute("SELECT state_type::text FROM flow_run").fetchall()
    assert states == [("COMPLETED",)]
