"""`retort gc`: what it takes and what it leaves, of stores whose age is set by hand."""

import json
import os
import random
from pathlib import Path

import pytest

from retort.errors import DamagedError, SpecError, StoreError
from retort.jobs import cleanup
from retort.store import Store, open_store
from retort.store.leases import Holder
from tests.support.aged import age, delete, going, hexed, ledger, make, path_of, refer, run

STAGES = ("prepare", "generate", "curate", "train", "evaluate", "report", "release")


@pytest.fixture
def store(tmp_path, monkeypatch) -> Store:
    """An empty store whose MLflow is a database that is not made unless something is registered."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return open_store(str(tmp_path / "store"))


def test_what_jobs_lead_to_stays_and_all_else_goes_as_a_slow_search_says(store):
    chosen, made_from = random.Random(3), {}
    for number in range(60):
        stage = STAGES[number * len(STAGES) // 60]
        earlier = [n for n, (key, _) in made_from.items() if key[0] != stage]
        inputs = chosen.sample(earlier, min(len(earlier), chosen.randint(0, 2)))
        labels = {made_from[n][0][0]: n for n in inputs}
        made_from[number] = make(store, stage, number, inputs=labels), set(labels.values())
    used = chosen.sample(range(60), 4)
    for place, number in enumerate(used):
        refer(store, f"job{place}", **{made_from[number][0][0]: number})
    age(store, 90)
    stays = set(used)
    for _ in range(60):  # as long as anything may still be added
        stays |= {n for kept in list(stays) for n in made_from[kept][1]}
    assert 4 < len(stays) < 50
    wanted = {key for number, (key, _) in made_from.items() if number not in stays}
    made = cleanup.plan(store)
    assert going(made) == wanted
    sizes = [sum(f.stat().st_size for f in path_of(store, key).iterdir()) for key in wanted]
    assert made.num_bytes == sum(sizes)
    assert {why: count for why, (count, _) in made.to_keep.items()} == {
        "of a job's latest run": 4,
        "inputs of artifacts that are kept": len(stays) - 4,
    }
    assert delete(made) == wanted
    assert not any(path_of(store, key).exists() for key in wanted)
    assert all(store.artifact(*made_from[number][0]).finished() for number in stays)
    assert cleanup.plan(store).to_remove == ()


def test_a_control_a_champion_and_the_latest_report_count_too(store):
    control, evaluated, reported = (
        make(store, "train", 1),
        make(store, "evaluate", 2, inputs={"champion": 9, "train-gold": 4}),
        make(store, "report", 3),
    )
    gold = make(store, "train", 4)
    refer(store, "job", **{"train__fine_tuning": 1, "evaluate__champion": 2})
    # The run before, of which a run under way has overwritten artifacts.json.
    store.job("job").write_json("report.json", {"fingerprints": {"report": hexed(3)}})
    other = make(store, "train", 5)
    age(store, 90)
    assert going(cleanup.plan(store)) == {other}
    assert delete(cleanup.plan(store)) == {other}
    assert all(store.artifact(*key).finished() for key in (control, evaluated, reported, gold))


def test_recent_artifacts_stay_with_what_they_were_made_from(store):
    old, older = make(store, "prepare", 1), make(store, "prepare", 2)
    age(store, 90)
    recent = make(store, "generate", 3, inputs={"prepare": 1})
    assert going(cleanup.plan(store)) == {older}
    age(store, 10, "artifacts/generate")
    assert going(cleanup.plan(store, 30)) == {older}
    assert going(cleanup.plan(store, 5)) == {recent, old, older}
    with pytest.raises(SpecError, match="--keep-days: -1; give a number of days, 0 or more"):
        cleanup.plan(store, -1)
    with pytest.raises(SpecError, match="--keep-days: nan"):
        cleanup.plan(store, float("nan"))


def test_what_is_not_finished_stays_for_two_days_whatever_is_asked_for(store):
    for number, days in ((1, 0.5), (2, 3.0)):
        folder = store.artifact("train", hexed(number))
        folder.write_json("scratch/inputs.json", {})
        Path(folder.uri, "checkpoint.123.part").write_bytes(b"half")
        age(store, days, f"artifacts/train/{hexed(number)}")
    made = cleanup.plan(store, 0)
    assert going(made) == {("train", hexed(2))}
    assert made.to_keep == {"not finished, perhaps in progress": (1, made.to_remove[0].num_bytes)}
    assert delete(made) == {("train", hexed(2))}
    assert not path_of(store, ("train", hexed(2))).exists()
    assert path_of(store, ("train", hexed(1))).exists()


def test_what_retort_did_not_make_is_never_touched(store):
    notes = Path(store.uri) / "artifacts/train/my-notes/notes.txt"
    stray = Path(store.uri) / f"artifacts/elsewhere/{hexed(1)}/file"
    for path in (notes, stray):
        path.parent.mkdir(parents=True)
        path.write_text("mine")
    age(store, 900)
    assert cleanup.plan(store, 0, ledgers=True).to_remove == ()


def test_paid_answers_go_only_when_asked_for_and_no_artifact_that_stays_has_them(store):
    named, judge, other = ledger(store, 11), ledger(store, 12, "a judge"), ledger(store, 13)
    compared = [ledger(store, 14), ledger(store, 15)]
    make(store, "generate", 1, facts={"ledger": hexed(11)})
    make(store, "curate", 2, sources={"curate.judge": "openai: a judge"})
    gone = make(store, "generate", 3, facts={"ledger": hexed(13)})
    make(store, "evaluate", 4, facts={"ledgers": [hexed(14), hexed(15)]})
    refer(store, "job", generate=1, curate=2, evaluate=4)
    age(store, 90)
    assert going(cleanup.plan(store)) == {gone}
    made = cleanup.plan(store, ledgers=True)
    assert going(made) == {gone, other}
    age(store, 0.5, f"ledger/{hexed(13)}")  # somebody pays right now
    assert going(cleanup.plan(store, 0, ledgers=True)) == {gone}
    age(store, 90, f"ledger/{hexed(13)}")
    assert delete(cleanup.plan(store, ledgers=True)) == {gone, other}
    kept = dict.fromkeys((named, judge, *compared), True)
    assert {key: store.ledger(key[1]).has("manner.json") for key in (*kept, other)} == {
        **kept,
        other: False,
    }


def test_on_s3_what_is_not_referred_to_is_removed_over_http(s3_here, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store = open_store(f"s3://retort/gc/{os.getpid()}")
    kept, gone = make(store, "prepare", 1), make(store, "generate", 2)
    unfinished = store.artifact("train", hexed(3))
    unfinished.write("part.bin", b"x")
    ledger(store, 4)
    refer(store, "job", prepare=1)
    assert cleanup.plan(store).to_remove == ()
    made = cleanup.plan(store, 0, ledgers=True)
    assert going(made) == {gone}
    assert made.to_remove[0].num_bytes == sum(
        map(store.artifact(*gone).size, ("data.bin", "manifest.json"))
    )
    assert delete(made) == {gone}
    assert store.artifact(*kept).finished() and not store.artifact(*gone).files()
    assert unfinished.files() == ["part.bin"]


def test_a_manifest_or_report_that_is_no_json_is_said_and_nothing_goes(store):
    make(store, "prepare", 1)
    store.job("job").write("artifacts.json", b"{")
    age(store, 90)
    with pytest.raises(
        DamagedError, match=r"jobs/job/artifacts\.json is damaged: it is no JSON .*Remove this file"
    ):
        cleanup.plan(store)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_job_that_may_not_be_read_is_an_error(store):
    refer(store, "job", prepare=1)
    os.chmod(f"{store.uri}/jobs/job/artifacts.json", 0)
    with pytest.raises(StoreError, match="access denied"):
        cleanup.plan(store)


def test_the_command_shows_first_and_removes_with_delete(store, capsys):
    assert run("--store", store.uri) == 0
    assert "there is no artifact in" in capsys.readouterr().out
    kept, gone = make(store, "prepare", 1), make(store, "generate", 2)
    ledger(store, 3)
    refer(store, "job", prepare=1)
    age(store, 41)
    assert run("--store", store.uri) == 0
    shown = capsys.readouterr().out
    size = sum(f.stat().st_size for f in path_of(store, gone).iterdir())
    assert "generate" in shown and gone[1] in shown and "41 days" in shown
    assert f"would remove: 1 folder, {size / 1000:.1f} kB; `retort gc --delete`" in shown
    assert "kept: 1 of a job's latest run" in shown and "kept: 1 paid answers" in shown
    assert kept[1] not in shown and store.artifact(*gone).finished()
    assert run("--store", store.uri, "--json", "--delete") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["removed"] == [gone[1]] and told["bytes"] == size
    assert told["goes"] == [
        {
            "stage": "generate",
            "name": gone[1],
            "age_days": pytest.approx(41, abs=0.1),
            "bytes": size,
            "is_finished": True,
        }
    ]
    assert not path_of(store, gone).exists()
    assert run("--store", store.uri, "--delete", "--keep-days", "0") == 0
    assert "removed: 0 folders, 0 bytes" in capsys.readouterr().out


def test_leases_of_processes_long_gone_go_and_those_of_today_stay(store, capsys):
    for name in ("old", "new"):
        with Holder(store.lease("train", name)) as holder:
            assert holder.take("artifact")
        if name == "old":
            age(store, 3)
    assert run("--store", store.uri) == 0
    assert "would also remove: 1 leases and unfinished uploads" in capsys.readouterr().out
    assert store.lease("train", "old").files()
    assert run("--store", store.uri, "--delete") == 0
    assert not store.lease("train", "old").files() and store.lease("train", "new").files()


def test_the_command_says_where_the_registry_is_unknown(store, monkeypatch, capsys):
    make(store, "release", 1)
    age(store, 90)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert run("--store", store.uri) == 0
    assert "all releases are shown as kept" in capsys.readouterr().out
    with pytest.raises(StoreError, match="nothing was removed"):
        run("--store", store.uri, "--delete")
    assert run("--store", store.uri, "--no-registry", "--delete") == 0
    assert "removed: 1 folder" in capsys.readouterr().out
