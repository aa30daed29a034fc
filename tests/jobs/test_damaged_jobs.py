"""A finished job with damaged files, or without MLflow: the next run says or mends it."""

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from retort.errors import DamagedError
from retort.jobs import reporting
from retort.jobs.inspection import why
from retort.jobs.run import JobRun
from retort.spec import load
from retort.store import Artifact, Folder, open_store
from retort.tracking import tracking_uri
from tests.support.tiny import write_job


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A job that was run to its end while MLflow was away."""
    folder = tmp_path_factory.mktemp("damaged")
    write_job(folder, engine="echo", num_epochs=1)
    with pytest.MonkeyPatch.context() as away:
        away.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        away.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        _, job, how = run(folder)
        content = reporting.finish(job, "none")
    assert set(how.values()) == {"done"} and content.registered["version"] is None
    return folder


@pytest.fixture(autouse=True)
def own_mlflow(monkeypatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def run(folder: Path, *sets: str, force: tuple = ()) -> tuple[dict[str, Artifact], JobRun, dict]:
    """The artifacts of a run, the run, and whether each stage was done or cached."""
    how: dict[str, str] = {}

    def listen(name, event):
        if event["kind"] in ("done", "cached"):
            how[name] = event["kind"]

    spec = load(folder / "job.yaml", list(sets))[0]
    job = JobRun(spec, open_store(str(folder / "store")), force, listen)
    job.open({})
    found: dict[str, Artifact] = {}
    for name, recipe in job.recipes.items():
        inputs = {key: found[key] for key in recipe.inputs}
        found[name] = job.cached(name, inputs) or job.make(name, inputs)
    return found, job, how


def flip(path: Path) -> bytes:
    """Flips one bit in the middle of a file; returns what it was."""
    whole = path.read_bytes()
    at = len(whole) // 2
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x40]) + whole[at + 1 :])
    return whole


def path_of(folder: Path, pattern: str) -> Path:
    (path,) = (folder / "store/artifacts").glob(pattern)
    return path


def test_a_student_whose_release_was_committed_while_mlflow_was_away_is_registered_later(place):
    for _ in range(2):
        _, job, how = run(place)
        assert set(how.values()) == {"cached"}
        assert reporting.finish(job, "none").registered["version"] == "1"
    uri = tracking_uri(open_store(str(place / "store")))
    client = MlflowClient(uri, registry_uri=uri)
    assert [str(v.version) for v in client.search_model_versions("name = 'tiny'")] == ["1"]


def test_a_bit_of_the_stored_student_stops_its_evaluation_and_not_what_is_cached(place):
    path = path_of(place, "train/*/student/model.safetensors")
    whole = flip(path)
    try:
        with pytest.raises(
            DamagedError, match=rf"{path} is damaged.* --force train` makes it again"
        ):
            run(place, "evaluate.num_bootstrap=201")
        run(place)
    finally:
        path.write_bytes(whole)
    assert run(place, "evaluate.num_bootstrap=201")[2]["evaluate"] == "done"


def test_a_bit_of_an_expected_answer_stops_what_reads_it(place):
    path = path_of(place, "prepare/*/test-00000.jsonl")
    whole = path.read_bytes()
    changed = whole.replace(b'"expected":"1', b'"expected":"2', 1)
    assert changed != whole
    path.write_bytes(changed)
    try:
        with pytest.raises(DamagedError, match=rf"{path} is damaged.*--force prepare"):
            run(place, "evaluate.num_bootstrap=202")
    finally:
        path.write_bytes(whole)


def test_a_bit_of_the_released_weights_stops_the_same_command_until_it_is_made_again(place):
    path = Path(run(place)[0]["release"].uri, "model/model.safetensors")
    whole = flip(path)
    with pytest.raises(DamagedError, match=rf"{path} is damaged.*--force release"):
        run(place)
    assert run(place, force=("release",))[2]["release"] == "done"
    assert path.read_bytes() == whole
    assert run(place)[2]["release"] == "cached"


@pytest.mark.parametrize("content", [b"", b'{"prepare": "ab'])
def test_a_record_of_inputs_that_was_cut_makes_the_stage_begin_anew(place, content):
    found = run(place)[0]
    out = Folder(found["report"].uri)
    before = out.finished()
    out.remove("manifest.json")
    Path(out.uri, "scratch").mkdir(exist_ok=True)
    Path(out.uri, "scratch/inputs.json").write_bytes(content)
    Path(out.uri, "left.json").write_text(json.dumps({"by": "a run that was killed"}))
    assert run(place)[2]["report"] == "done"
    assert out.finished() == before and not out.has("left.json")


# Last, for it makes a stage anew whose seconds the report tells.
def test_a_stage_that_could_not_reach_a_model_is_made_again_by_the_next_run_alone(place):
    curated = Folder(run(place)[0]["curate"].uri)
    before = curated.finished()
    curated.amend({"num_unreached": 3})
    spec, store = load(place / "job.yaml")[0], open_store(str(place / "store"))
    (reason,) = why(spec, store)["curate"]
    assert reason == "3 requests that failed for a passing reason are asked again"
    how = run(place)[2]
    assert how == {**dict.fromkeys(how, "cached"), "curate": "done"}
    assert curated.finished() == before and not why(spec, store)["curate"]
