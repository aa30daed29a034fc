"""A tenth of the matrix of failures (`python -m benchmarks.failures`), by the same functions."""

import shutil

import pytest

from benchmarks.failures import lab, page
from benchmarks.failures.matrix import FAULTS, STEPS, Cell, cells
from benchmarks.failures.results import read_records
from benchmarks.failures.scenario import play

TENTH = (
    "prepare sigkill",
    "generate sigkill",
    "commit sigkill",
    "register sigkill",
    "curate sigkill_child",
    "generate sigterm",
    "generate disk_full",
    "generate http_500",
    "generate http_garbage",
    "generate engine_death",
    "prepare flipped_bit",
    "register cut_file",
    "report two_runs",
    "register mlflow_away",
    "upload s3_403",
)


@pytest.fixture(scope="module")
def opened(tmp_path_factory, prefect_url, mlflow_url, s3):
    folder = tmp_path_factory.mktemp("failures")
    with lab.opened(folder, lab.Servers(prefect_url, mlflow_url, s3)) as found:
        yield found


@pytest.mark.parametrize("name", TENTH)
def test_nothing_is_lost_asked_twice_or_damaged_unseen(opened, name):
    cell = Cell(*name.split())
    if cell not in cells():
        pytest.skip("this machine cannot make the fault")
    outcome = play(opened, cell)
    assert outcome.problem == "", outcome
    assert (outcome.rows_lost, outcome.asked_twice, outcome.is_silent) == (0, 0, False)
    is_quiet = cell.fault in ("sigkill", "cut_file", "two_runs")
    assert bool(outcome.message) != is_quiet, outcome


def test_a_row_that_differs_and_an_artifact_that_is_missing_are_counted_as_lost(opened, tmp_path):
    shutil.copytree(opened.snapshot(lab.FINISHED), tmp_path / "store")
    store = tmp_path / "store"
    assert read_records(str(store)) == opened.records
    (path,) = store.glob("artifacts/curate/*/decisions.jsonl")
    path.write_text(path.read_text().replace('"kept":true', '"kept":null', 1))
    found = read_records(str(store))
    lost = [name for name, value in opened.records.items() if found.get(name) != value]
    assert len(lost) == 1 and lost[0].startswith("curate/decisions")
    (path,) = store.glob("artifacts/train/*/manifest.json")
    path.unlink()
    assert "train/weights" not in read_records(str(store))


def test_the_page_has_a_word_for_each_cell_and_says_which_command_wrote_it():
    text = page.PAGE.read_text()
    assert "`python -m benchmarks.failures`" in text
    rows = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| [")]
    assert len(rows) == len(FAULTS)
    for cell in cells():
        row = rows[list(FAULTS).index(cell.fault)]
        assert row[1 + STEPS.index(cell.step)].strip() not in ("", "-"), cell
