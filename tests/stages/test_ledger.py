"""The ledger: what is added stands within seconds, whole, once, and is found by its key."""

import hashlib
import time

import numpy as np
import pytest

from retort.engines._local import local_raw, parse_local
from retort.errors import StoreError
from retort.store import Folder, open_store
from retort.store.ledger import MAX_UNCOMMITTED, Ledger, StoredAnswer
from retort.store.signals import captured

FACTS = {"engine": "echo", "vocabulary": 70}


def key(name: object) -> str:
    return hashlib.sha256(str(name).encode()).hexdigest()[:32]


def entry(name: object, reason: str = "stop", limit: int = 10, at: float = 1.0) -> StoredAnswer:
    return StoredAnswer(
        key(name), (limit, 100), "me", at, local_raw([1], [2, 3], reason, f"said {name}")
    )


def opened(folder: Folder) -> Ledger:
    ledger = Ledger(folder, parse_local)
    ledger.load()
    return ledger


def signal_of(seed: int, length: int):
    random = np.random.default_rng(seed)
    ids = np.stack([random.permutation(70)[:4] for _ in range(length)]).astype(np.int32)
    logits = random.normal(size=(length, 70))
    logprobs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    top = np.take_along_axis(logprobs, ids, axis=1).astype(np.float32)
    return captured(ids, top, ids[:, 1].copy(), top[:, 1].copy())


def test_an_answer_and_its_signal_come_back_by_key(tmp_path):
    folder = Folder(str(tmp_path))
    ledger = opened(folder)
    ledger.start(FACTS)
    for number in range(300):
        ledger.add(entry(number), signal_of(number, 3) if number % 2 else None)
    ledger.close()
    again = opened(folder)
    assert len(again) == 300
    for number in (0, 1, 127, 128, 299):
        standing = again.find(key(number))
        found, raw = again.read(standing)
        assert (standing.state, standing.limits) == ("accepted", (10, 100))
        assert again.response(found).text == f"said {number}"
        assert (raw is not None) == bool(number % 2)
        if number % 2:
            stored = again.signal(standing)
            assert stored.target_ids_T.tolist() == signal_of(number, 3).target_ids_T.tolist()
    assert again.find(key("never asked")) is None


def test_few_answers_are_ever_uncommitted_and_none_for_long(tmp_path):
    folder = Folder(str(tmp_path))
    ledger = opened(folder)
    ledger.start(FACTS)
    for number in range(2000):
        ledger.add(entry(number), None)
        if number % 100 == 99:
            assert number + 1 - len(opened(folder)) <= MAX_UNCOMMITTED
    ledger.commit()
    ledger.add(entry("the last"), None)
    waited = time.monotonic()
    while opened(folder).find(key("the last")) is None:
        assert time.monotonic() - waited < 5
        time.sleep(0.1)
    ledger.close()


def test_an_uncommitted_answer_can_be_read_at_once(tmp_path):
    ledger = opened(Folder(str(tmp_path)))
    ledger.start(FACTS)
    ledger.add(entry("a"), None)
    assert ledger.response(ledger.read(ledger.find(key("a")))[0]).text == "said a"
    ledger.close()


@pytest.mark.parametrize(("most", "num_read"), [(1 << 30, 2), (1, 6)])
def test_segments_in_memory_are_bounded_by_their_bytes(most, num_read, tmp_path, monkeypatch):
    ledger = opened(Folder(str(tmp_path)))
    ledger.start(FACTS)
    for name in "ab":
        ledger.add(entry(name), None)
        ledger.commit()
    ledger.close()
    again, read, plain = opened(Folder(str(tmp_path))), [], Folder.read
    monkeypatch.setattr("retort.store.ledger.CACHED_BYTES", most)
    monkeypatch.setattr(Folder, "read", lambda self, name: read.append(name) or plain(self, name))
    for name in "ababab":
        assert again.response(again.read(again.find(key(name)))[0]).text == f"said {name}"
    assert len(read) == num_read


def test_several_writers_add_to_one_ledger(tmp_path):
    folder = Folder(str(tmp_path))
    writers = [opened(folder) for _ in range(3)]
    for writer in writers:
        writer.start(FACTS)
    for number in range(400):
        writers[number % 3].add(entry(number), None)
    for writer in writers:
        writer.close()
    assert len(opened(folder)) == 400


def test_the_last_answer_stands_but_a_failure_never_replaces_one(tmp_path):
    folder = Folder(str(tmp_path))
    ledger = opened(folder)
    ledger.start(FACTS)
    ledger.add(entry("a", "length", limit=5, at=1.0), None)
    ledger.add(entry("a", "stop", limit=9, at=2.0), None)
    ledger.add(entry("a", "error", at=3.0), None)
    ledger.add(entry("b", "error", at=1.0), None)
    ledger.add(entry("b", "length", at=0.5), None)
    ledger.close()
    for found in (ledger, opened(folder)):
        assert found.find(key("a")).state == "accepted"
        assert found.find(key("a")).limits[0] == 9
        assert found.find(key("b")).state == "truncated"


def test_what_a_killed_writer_left_half_written_is_not_there(tmp_path):
    folder = Folder(str(tmp_path))
    ledger = opened(folder)
    ledger.start(FACTS)
    ledger.add(entry("a"), signal_of(0, 2))
    ledger.close()
    (tmp_path / "segments/0-x-000000.jsonl.12345678.part").write_bytes(b'{"key": "dead')
    (tmp_path / "segments/0-y-000000.safetensors").write_bytes(b"signals without their answers")
    assert len(opened(folder)) == 1


def test_a_store_that_cannot_be_written_is_an_error_not_a_loss(tmp_path):
    (tmp_path / "ledger").mkdir()
    ledger = opened(Folder(str(tmp_path / "ledger")))
    ledger.start(FACTS)
    (tmp_path / "ledger/segments").write_text("a file where the folder should be")
    ledger.add(entry("a"), None)
    with pytest.raises(StoreError, match="segments"):
        ledger.commit()
    with pytest.raises(StoreError):
        ledger.add(entry("b"), None)


def test_a_ledger_on_s3_is_read_by_a_second_machine(s3_here):
    folder = open_store("s3://retort/ledgers").ledger("one")
    ledger = opened(folder)
    ledger.start(FACTS)
    for number in range(300):
        ledger.add(entry(number), signal_of(number, 2))
    ledger.close()
    second = opened(folder)
    assert len(second) == 300
    assert second.signal(second.find(key(299))) is not None
