"""Damaged artifacts: read as an input or verified, each is noticed, by name and with its remedy."""

import json
import os
import uuid
from pathlib import Path

import pytest

from flows.cli import main
from retort.errors import DamagedError, SpecError, StoreError
from retort.jobs.verify import repair, verify
from retort.store import MANIFEST, Folder, InputFolder, Store, folder, open_store
from tests.stages.test_ledger import key
from tests.stages.test_ledger_damage import filled, opened
from tests.support.aged import hexed, make, refer

NAME = "0123456789abcdef"
FILES = {
    "rows.jsonl": b'{"a": 1}\n' * 50,
    "model/weights.bin": os.urandom(3 << 20),
    "model/config.json": b"{}",
}


@pytest.fixture(params=["local", "memory", "s3"])
def store(request, tmp_path) -> Store:
    if request.param == "local":
        return open_store(str(tmp_path))
    if request.param == "memory":
        return open_store(f"memory://{uuid.uuid4().hex}")
    request.getfixturevalue("s3_here")
    return open_store(f"s3://retort/{uuid.uuid4().hex}")


def committed(store: Store, **facts: object) -> Folder:
    found = store.artifact("train", NAME)
    for name, data in FILES.items():
        found.write(name, data)
    found.commit({"facts": facts, "ingredients": {}})
    return found


def flip(found: Folder, name: str) -> None:
    data = bytearray(found.read(name))
    data[len(data) // 2] ^= 0x10
    found.write(name, bytes(data))


def test_what_is_whole_is_read_as_it_is(store):
    reader = InputFolder(committed(store).uri)
    assert reader.files() == sorted(FILES)
    assert dict(reader.read_all(sorted(FILES))) == FILES
    with reader.local_copy("model") as local:
        assert (local / "weights.bin").read_bytes() == FILES["model/weights.bin"]
    assert reader.damages() == []


@pytest.mark.parametrize("name", FILES)
def test_one_bit_of_an_input_is_an_error_with_its_file_and_what_makes_it_again(store, name):
    found = committed(store)
    flip(found, name)
    assert found.finished()  # of the same size

    def copied() -> None:
        with InputFolder(found.uri).local_copy("model"):
            pass

    reads = [lambda: InputFolder(found.uri).read(name)]
    reads.append(lambda: list(InputFolder(found.uri).read_all([name])))
    reads += [copied] if name.startswith("model/") else []
    for read in reads:
        with pytest.raises(DamagedError) as error:
            read()
        assert f"{found.uri}/{name} is damaged" in str(error.value)
        remedy = f"`retort run SPEC --store {store.uri} --force train` makes it again"
        assert f"the artifact {NAME} of train; {remedy}" in str(error.value)
        assert not error.value.transient
    assert [name in str(damage) for damage in InputFolder(found.uri).damages()] == [True]


def test_a_listed_file_that_is_gone_is_missing_and_not_left_out(store):
    found = committed(store)
    found.remove("rows.jsonl")
    reader = InputFolder(found.uri)
    assert reader.has("rows.jsonl") and "rows.jsonl" in reader.files()
    with pytest.raises(DamagedError, match=r"rows\.jsonl is damaged: it is missing"):
        reader.read("rows.jsonl")
    assert len(reader.damages()) == 1


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b'{"files": {"rows.jsonl": 7}}', bytes(40), b"\xff\xfe"]
)
def test_a_manifest_that_is_none_is_an_error_with_its_file(tmp_path, content):
    found = committed(open_store(str(tmp_path)))
    Path(found.uri, MANIFEST).write_bytes(content)
    for read in (found.manifest, found.finished, lambda: InputFolder(found.uri).read("rows.jsonl")):
        with pytest.raises(DamagedError, match=r"manifest\.json is damaged: .* --force train"):
            read()


def test_a_fact_of_a_manifest_that_was_changed_is_noticed_and_an_older_manifest_is_read(tmp_path):
    found = committed(open_store(str(tmp_path)), accuracy=0.25)
    path = Path(found.uri, MANIFEST)
    whole = path.read_text()
    path.write_text(whole.replace("0.25", "0.75"))
    with pytest.raises(DamagedError, match="it is not as it was written"):
        found.finished()
    older = json.loads(whole)
    del older["manifest_sha256"]
    path.write_text(json.dumps(older))
    assert found.finished() and InputFolder(found.uri).damages() == []


def test_facts_are_added_to_a_manifest_and_the_artifact_stays_the_same(store):
    found = committed(store, model_version=None, keys={1: (1, 2), 10: 0.1, 9: "x"})
    before = found.finished()
    found.amend({"model_version": "7"})
    assert found.finished() == before
    facts = {"model_version": "7", "keys": {"1": [1, 2], "10": 0.1, "9": "x"}}
    assert found.read_manifest()["facts"] == facts


def test_a_manifest_holds_no_secret_of_an_address(store):
    found = committed(store, endpoint="https://me:PASS@host/v1?sig=SIGNED")
    assert found.read_manifest()["facts"]["endpoint"] == "https://host/v1"
    assert b"PASS" not in found.read(MANIFEST) and b"SIGNED" not in found.read(MANIFEST)


def test_a_local_file_is_digested_once_a_process_until_it_changes(tmp_path, monkeypatch):
    found, digested = committed(open_store(str(tmp_path))), []
    digest = folder.hashlib.file_digest

    def counted(stream, name):
        digested.append(stream.name)
        return digest(stream, name)

    monkeypatch.setattr(folder.hashlib, "file_digest", counted)
    for _ in range(3):
        with InputFolder(found.uri).local_copy("model"):
            pass
    assert digested == []  # the commit has read them back
    flip(found, "model/weights.bin")
    with pytest.raises(DamagedError), InputFolder(found.uri).local_copy("model"):
        pass
    assert digested == [f"{found.uri}/model/weights.bin"]


# retort verify


@pytest.fixture
def jobs(tmp_path) -> Store:
    """Two jobs of two artifacts each, the first with a ledger."""
    store = open_store(str(tmp_path / "store"))
    make(store, "prepare", 1)
    make(store, "generate", 2, facts={"ledger": hexed(9)})
    make(store, "prepare", 3)
    make(store, "train", 4)
    filled(store.ledger(hexed(9)))
    refer(store, "first", prepare=1, generate=2)
    refer(store, "second", prepare=3, train__gold=4)
    return store


def damaged(store: Store, job: str | None) -> list[tuple[str, str]]:
    return [(each.kind, each.name) for each in verify(store, job) if each.damages]


def test_verify_reads_what_a_job_uses_or_all_and_names_what_is_damaged(jobs):
    assert damaged(jobs, None) == damaged(jobs, "first") == damaged(jobs, "second") == []
    kinds = [each.kind for each in verify(jobs, "first")]
    assert kinds == ["job", "prepare", "generate", "ledger"]
    assert len(list(verify(jobs, None))) == 2 + 4 + 1
    assert all(each.num_files and each.num_bytes for each in verify(jobs, None))
    flip(jobs.artifact("train", hexed(4)), "data.bin")
    Path(jobs.artifact("prepare", hexed(1)).uri, MANIFEST).write_bytes(b"{")
    assert damaged(jobs, "first") == [("prepare", hexed(1))]
    assert damaged(jobs, "second") == [("train", hexed(4))]
    assert set(damaged(jobs, None)) == {("prepare", hexed(1)), ("train", hexed(4))}
    (train,) = [each for each in verify(jobs, "second") if each.damages]
    assert "data.bin is damaged" in train.damages[0] and "--force train" in train.damages[0]
    jobs.job("second").write("artifacts.json", b"")
    assert ("job", "second") in damaged(jobs, "second")
    with pytest.raises(SpecError, match=r"no job 'frist' in .* \(did you mean 'first'\?\)"):
        list(verify(jobs, "frist"))


def test_verify_finds_a_damaged_segment_and_repair_keeps_its_other_answers(jobs):
    (path,) = Path(jobs.ledger(hexed(9)).uri).glob("segments/*.jsonl")
    path.write_bytes(path.read_bytes().replace(b"said 4", b"said 5", 1))
    assert damaged(jobs, "first") == damaged(jobs, None) == [("ledger", hexed(9))]
    assert damaged(jobs, "second") == []
    assert list(repair(jobs)) == [(str(path), 5, 1)]
    assert damaged(jobs, None) == [] and list(repair(jobs)) == []
    ledger = opened(jobs.ledger(hexed(9)))
    assert len(ledger) == 5 and ledger.find(key(4)) is None


def test_an_artifact_of_a_job_that_is_gone_is_said(jobs):
    jobs.artifact("prepare", hexed(1)).clear()
    (found,) = [each for each in verify(jobs, "first") if each.damages]
    assert "not found" in found.damages[0] and hexed(1) in found.damages[0]


def test_a_store_that_fails_is_an_error_and_no_damage(monkeypatch, s3_here):
    store = open_store("s3://no-such-bucket/x")
    with pytest.raises(StoreError, match="no bucket"):
        list(verify(store, None))


def verified(capsys, *arguments: str) -> tuple[int, str]:
    """The exit code of `retort verify`, and what it printed."""
    with pytest.raises(SystemExit) as ended:
        main(["verify", *arguments])
    return ended.value.code, capsys.readouterr().out


def test_the_command_says_what_is_damaged_and_repairs_ledgers(jobs, capsys):
    code, said = verified(capsys, "--store", jobs.uri)
    assert code == 0 and "folders" in said and said.endswith("all as written\n")
    (path,) = Path(jobs.ledger(hexed(9)).uri).glob("segments/*.jsonl")
    path.write_bytes(path.read_bytes().replace(b"said 2", b"said 3", 1))
    code, said = verified(capsys, "first", "--store", jobs.uri)
    assert code == 1 and f"damaged ledger {hexed(9)}: {path}" in said
    assert "retort verify --repair" in said and "1 of them damaged" in said
    assert verified(capsys, "second", "--store", jobs.uri)[0] == 0
    code, said = verified(capsys, "--repair", "--store", jobs.uri, "--json")
    content = json.loads(said)
    assert code == 0 and not any(folder["damages"] for folder in content["checked"])
    assert content["repaired"] == [{"segment": str(path), "num_kept": 5, "num_lost": 1}]
