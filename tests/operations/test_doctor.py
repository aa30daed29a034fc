"""`retort doctor`: it finds what is wrong, says what to do, and repeats no secret."""

import subprocess

import pytest

from tests.support.servers import BIN, environment, free_port

JOB = """
name: job
prepare: {train: a.jsonl, test: b.jsonl}
generate: {teacher: gpt-4o, engine: openai, top_k: 0, api_key_env: A_TEACHERS_KEY}
train: {student: ./base}
"""


@pytest.fixture
def doctor(tmp_path):
    (tmp_path / "job.yaml").write_text(JOB)

    def run(*words: str, **env: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [str(BIN / "retort"), "doctor", *words],
            capture_output=True,
            text=True,
            timeout=120,
            cwd=tmp_path,
            env=environment(**env),
            check=False,
        )

    return run


def lines(done, state):
    return [line for line in done.stdout.splitlines() if line.startswith(f"{state} ")]


def test_a_machine_that_is_set_up_has_nothing_bad(doctor, prefect_url):
    done = doctor("job.yaml", PREFECT_API_URL=prefect_url, A_TEACHERS_KEY="a-secret")
    assert done.returncode == 0, done.stdout
    assert not lines(done, "bad")
    assert any("Prefect at" in line and "answers" in line for line in lines(done, "ok"))
    assert "key A_TEACHERS_KEY (generate.api_key_env) is set" in done.stdout
    assert "a-secret" not in done.stdout + done.stderr


def test_what_is_wrong_is_named_with_its_remedy_and_without_its_password(doctor):
    place = f"127.0.0.1:{free_port()}"
    done = doctor(
        "job.yaml",
        PREFECT_API_URL=f"http://me:a-secret@{place}/api",
        MLFLOW_TRACKING_URI=f"http://me:a-secret@{place}",
        A_TEACHERS_KEY="",
    )
    assert done.returncode == 1
    bad = "\n".join(lines(done, "bad"))
    for found in (f"Prefect at http://{place}/api", f"MLflow at http://{place}", "A_TEACHERS_KEY"):
        assert found in bad
    assert "retort up" in done.stdout and "export A_TEACHERS_KEY=" in done.stdout
    assert "a-secret" not in done.stdout + done.stderr


def test_a_store_that_cannot_be_written_is_bad(doctor, tmp_path):
    (tmp_path / "file").write_text("")
    done = doctor("--store", str(tmp_path / "file" / "store"))
    assert done.returncode == 1
    assert any("store" in line for line in lines(done, "bad"))
