"""What a job imports ahead of its use."""

import json
import os

import pytest

from retort.engines import transformers
from retort.jobs.run import JobRun
from retort.processes import forks, name_of
from retort.spec import load
from retort.store import Artifact, open_store
from tests.support.tiny import write_job

pytestmark = pytest.mark.skipif(
    any(map(os.path.exists, forks.GPUS)), reason="a machine with a GPU has no fork server"
)


MEASURE = "retort.stages.evaluate.measure"


def alone(servers: dict) -> list[list[str]]:
    """The libraries of each fork server that imports nothing else."""
    return [libraries for key in servers if (libraries := json.loads(key)[1]) is not None]


@pytest.mark.parametrize(
    ("kind", "engine", "wanted"),
    [
        ("job", "transformers", [[MEASURE, name_of(transformers.import_libraries)]]),
        ("plan", "transformers", []),  # its students are not measured
        ("job", "echo", []),
    ],
)
def test_what_measures_the_students_is_imported_while_their_rows_are_checked(
    tmp_path, monkeypatch, kind, engine, wanted
):
    monkeypatch.setattr(forks, "_servers", servers := {})
    spec = load(write_job(tmp_path, "echo"), [f"evaluate.engine={engine}"])[0]
    job = JobRun(spec, open_store(str(tmp_path / "store")), [], lambda name, event: None, kind)
    inputs: dict[str, Artifact] = {}
    try:
        for stage in ("prepare", "generate", "curate"):
            assert alone(servers) == []
            inputs[stage] = job.make(stage, dict(inputs))
        assert alone(servers) == wanted
    finally:
        for server in servers.values():
            server.end()
