"""What names an artifact and a ledger stays what it was: nobody's cache is made again for a change
of ours. Raising a number in `VERSIONS` is the one reason to write the file anew, with
`python -m tests.unit.test_golden_ingredients`."""

import json
from pathlib import Path

import pytest

from retort.jobs.source_digests import source_digests
from retort.plugins import FOLDER, look_in
from retort.spec import load, recipes
from retort.stages.teacher_requests import request_context

HERE = Path(__file__).parent.parent
GOLDEN = HERE / "golden" / "ingredients.json"
EXAMPLES = HERE.parent / "examples" / "quickstart"
JOBS = {
    "quickstart": (EXAMPLES / "job.yaml", None),
    "endpoint": (HERE / "golden" / "endpoint.yaml", None),
    "azure": (HERE / "golden" / "azure.yaml", str(EXAMPLES / "models" / "base")),
}


def ingredients(job):
    path, student = JOBS[job]
    spec, _ = load(path, student=student)
    found = {
        name: recipe.ingredients for name, recipe in recipes(spec, source_digests(spec)).items()
    }
    return json.loads(json.dumps({**found, "ledger": request_context(spec)}))


@pytest.mark.parametrize("job", JOBS)
def test_the_ingredients_of_artifacts_and_ledger_are_those_of_the_golden_file(job, monkeypatch):
    monkeypatch.setenv(FOLDER, str(GOLDEN.parent))
    assert ingredients(job) == json.loads(GOLDEN.read_text())[job]


if __name__ == "__main__":
    look_in(GOLDEN.parent)
    found = {job: ingredients(job) for job in JOBS}
    GOLDEN.write_text(json.dumps(found, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
