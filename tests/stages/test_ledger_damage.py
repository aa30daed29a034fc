"""Odd answers, damaged files, clocks: none of them stops a ledger or repeats or hides an answer."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import orjson
import pytest

from retort.engines import find_engine
from retort.engines._local import parse_local
from retort.errors import DamagedError
from retort.records import Response
from retort.store import Folder
from retort.store.ledger import CONTEXT_FILE, Ledger, StoredAnswer
from retort.store.ledger.segment import repair_segment, segment_names
from tests.stages.test_ledger import FACTS, entry, key, opened, signal_of

parse_openai = find_engine("openai").parse


def body(**values):
    """An endpoint's whole answer, some of its values changed."""
    message = {"role": "assistant", "content": values.pop("content", "four")}
    usage = values.pop("usage", {"prompt_tokens": 3, "completion_tokens": 1})
    choice = {"message": message, "finish_reason": values.pop("finish_reason", "stop")}
    return {"body": {"choices": [choice], "usage": usage, **values}}


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


ODD = {
    "usage of nulls": body(usage={"prompt_tokens": None, "completion_tokens": None}),
    "usage of texts": body(usage={"prompt_tokens": "3", "completion_tokens": "1"}),
    "usage of fractions": body(usage={"prompt_tokens": 2.5, "completion_tokens": 1}),
    "negative usage": body(usage={"prompt_tokens": 3, "completion_tokens": -7}),
    "usage beyond 64 bits": body(usage={"prompt_tokens": 1 << 80, "completion_tokens": 1}),
    "content of parts": body(content=[{"type": "text", "text": "four"}]),
    "content is a number": body(content=4.5),
    "content is half a character": body(content="\ud83d four"),
    "a reason that is a list": body(finish_reason=["stop"]),
    "an unread field, 300 deep": body(content="fine", extra=nested(300)),
    "an unread field, 900 deep": body(content="fine", extra=nested(900)),
    "an unread number of 90 digits": body(content="fine", extra=10**90),
    "choices that are none": {"body": {"choices": {}}},
    "no object": ["four"],
    "nothing": None,
    "an error that is a text": {"error": "overloaded"},
}

# What servers write so, and what is read of it.
READ = {"usage of nulls", "usage of texts", "usage of fractions", "negative usage"}
READ |= {"content of parts"}


def stored(name, raw):
    return StoredAnswer(key(name), (10, 100), "me", 1.0, raw)


@pytest.mark.parametrize("name", ODD)
def test_an_odd_answer_fails_alone_now_and_after_every_reload(tmp_path, name):
    ledger = Ledger(Folder(str(tmp_path)), parse_openai)
    ledger.start(FACTS)
    good = [ledger.add(stored(number, body(content=f"n{number}")), None) for number in range(3)]
    odd = ledger.add(stored(name, ODD[name]), None)
    ledger.close()
    again = Ledger(Folder(str(tmp_path)), parse_openai)
    again.load()
    assert [response.state for response in good] == ["accepted"] * 3
    is_fine = name in READ or name.startswith("an unread")
    text = body()["body"]["choices"][0]["message"]["content"] if name in READ else "fine"
    for response in (odd, again.response(again.read(again.find(key(name)))[0])):
        assert response.state == ("accepted" if is_fine else "failed")
        assert response.text == (text if is_fine else "")
        assert bool(response.cause) != is_fine
        orjson.dumps(response)  # the artifact can hold it
    assert again.find(key(name)).state == odd.state
    for number in range(3):
        assert again.response(again.read(again.find(key(number)))[0]).text == f"n{number}"


def test_a_ledger_in_which_an_odd_answer_lies_already_is_read(tmp_path):
    rows = [
        stored(0, body()),
        stored(1, ODD["content is a number"]),
        stored(2, body(content="two")),
    ]
    lines = []
    for row in rows:  # as the first versions wrote them
        facts = asdict(row)
        lines.append({name: facts[name] for name in ("key", "limits", "by", "at", "raw")})
    (tmp_path / "segments").mkdir()
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "segments/1-a-000000.jsonl").write_text(text)
    ledger = Ledger(Folder(str(tmp_path)), parse_openai, run="now")
    ledger.load()
    found = [ledger.find(key(number)) for number in range(3)]
    assert [each.state for each in found] == ["accepted", "failed", "accepted"]
    assert not any(each.of_this_run for each in found)


def test_a_parse_that_breaks_or_answers_nonsense_fails_the_row_with_its_reason(tmp_path):
    def parse(name: str, raw: dict) -> Response:
        if raw["text"] == "deep":
            raise RecursionError("too deep")
        return Response(name, raw["text"], [1], "stop", 1, 1, state=raw.get("state", "accepted"))

    ledger = Ledger(Folder(str(tmp_path)), parse)
    ledger.start(FACTS)
    assert "too deep" in ledger.add(stored(1, {"text": "deep"}), None).cause
    assert "KeyError" in ledger.add(stored(2, {}), None).cause
    assert "'done' is no state" in ledger.add(stored(3, {"text": "x", "state": "done"}), None).cause
    ledger.close()


def test_a_signal_that_cannot_be_stored_fails_its_row_and_keeps_the_batch(tmp_path):
    ledger = opened(Folder(str(tmp_path)))
    ledger.start(FACTS)
    bad = signal_of(1, 3)
    bad.logprobs_TK[1, 2] = np.nan
    outside = signal_of(2, 3)
    outside.ids_TK[0, 0] = 70
    assert ledger.add(entry("nan"), bad).state == "failed"
    assert ledger.add(entry("outside"), outside).state == "failed"
    assert ledger.add(entry("good"), signal_of(3, 3)).state == "accepted"
    ledger.close()
    again = opened(Folder(str(tmp_path)))
    assert again.find(key("nan")).state == again.find(key("outside")).state == "failed"
    assert "70" in again.response(again.read(again.find(key("outside")))[0]).cause
    assert again.signal(again.find(key("good"))) is not None


# Clocks and runs


def asking(folder, run):
    ledger = Ledger(folder, parse_local, run)
    ledger.load()
    ledger.start(FACTS)
    return ledger


@pytest.mark.parametrize("second_at", [3.0, 3600.0, 7200.0])
def test_the_later_answer_counts_whatever_the_clock_said(tmp_path, second_at):
    folder = Folder(str(tmp_path))
    first = asking(folder, "a")
    first.add(entry("x", "length", limit=5, at=3600.0), None)
    first.close()
    second = asking(folder, "b")
    assert not second.find(key("x")).of_this_run
    second.add(entry("x", "length", limit=9, at=second_at), None)
    assert second.find(key("x")).of_this_run
    second.close()
    for ledger in (second, opened(folder)):
        assert ledger.find(key("x")).limits[0] == 9
    third = asking(folder, "b")  # the same run, in another process
    assert third.find(key("x")).of_this_run
    third.close()


def test_what_a_run_asked_is_its_own_although_an_earlier_answer_counts(tmp_path):
    folder = Folder(str(tmp_path))
    first = asking(folder, "a")
    first.add(entry("x", "length", at=5.0), None)
    first.close()
    second = asking(folder, "b")
    second.add(entry("x", "error", at=1.0), None)
    second.close()
    for ledger in (second, asking(folder, "b")):
        found = ledger.find(key("x"))
        assert found.state == "truncated" and found.of_this_run
        ledger.close()


def test_two_machines_whose_clocks_are_an_hour_apart_agree_on_what_counts(tmp_path):
    folder = Folder(str(tmp_path))
    ahead, behind = asking(folder, "a"), asking(folder, "b")
    ahead.add(entry("x", "length", limit=5, at=3600.0), None)
    ahead.commit()
    behind.load()
    behind.add(entry("x", "stop", limit=9, at=10.0), None)
    behind.commit()
    ahead.load()
    for ledger in (ahead, behind, opened(folder)):
        assert ledger.find(key("x")).state == "accepted"
    ahead.close()
    behind.close()


# Damage


def filled(folder, signals=True):
    ledger = opened(folder)
    ledger.start(FACTS)
    for number in range(6):
        ledger.add(entry(number), signal_of(number, 2) if signals and number % 2 else None)
    ledger.close()
    (name,) = segment_names(folder)
    return Path(folder.uri) / name


def flipped(path, marker, count=1):
    data = bytearray(path.read_bytes())
    at = -1
    for _ in range(count):
        at = data.index(marker, at + 1)
    data[at + len(marker)] ^= 0x04
    path.write_bytes(bytes(data))


DAMAGE = {
    "a bit of a text": lambda path: flipped(path, b"said ", 3),
    "a bit of a key": lambda path: flipped(path, b'"key":"', 2),
    "a bit of a state": lambda path: flipped(path, b'"at":', 4),
    "the end": lambda path: path.write_bytes(path.read_bytes()[:-40]),
    "the last whole lines": lambda path: path.write_bytes(
        b"\n".join(path.read_bytes().split(b"\n")[:4]) + b"\n"
    ),
    "everything": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "a line of another file": lambda path: path.write_bytes(path.read_bytes() + b"hello\n"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_segment_is_an_error_that_names_it_and_what_to_do(tmp_path, name):
    path = filled(Folder(str(tmp_path / "ledger/abc")))
    assert len(opened(Folder(str(tmp_path / "ledger/abc")))) == 6
    DAMAGE[name](path)
    with pytest.raises(DamagedError) as error:
        opened(Folder(str(tmp_path / "ledger/abc")))
    assert str(path) in str(error.value) and "is damaged" in str(error.value)
    assert f"`retort verify --repair --store {tmp_path}`" in str(error.value)


@pytest.mark.parametrize("how", ["flipped", "cut", "gone"])
def test_damaged_signals_are_an_error_that_names_their_file(tmp_path, how):
    folder = Folder(str(tmp_path))
    path = filled(folder).with_suffix(".safetensors")
    data = path.read_bytes()
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(
            data[:-9] if how == "cut" else data[:-9] + bytes([data[-9] ^ 2]) + data[-8:]
        )
    ledger = opened(folder)
    with pytest.raises(DamagedError, match=r"\.safetensors is damaged"):
        ledger.signal(ledger.find(key(1)))
    with pytest.raises(DamagedError):
        ledger.read(ledger.find(key(0)))


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("a bit of a text", {0, 1, 3, 4, 5}),
        ("a bit of a key", {0, 2, 3, 4, 5}),
        ("the end", {0, 1, 2, 3, 4}),
        ("the last whole lines", {0, 1, 2}),
        ("everything", set()),
        ("a line of another file", {0, 1, 2, 3, 4, 5}),
    ],
)
def test_a_repair_keeps_every_answer_that_can_be_read_and_counts_the_others(tmp_path, name, kept):
    folder = Folder(str(tmp_path))
    path = filled(folder)
    DAMAGE[name](path)
    num_kept, num_lost = repair_segment(folder, f"segments/{path.name}")
    assert num_kept == len(kept)
    assert num_lost == (6 - len(kept) if name != "everything" else 0)
    again = opened(folder)
    for number in range(6):
        found = again.find(key(number))
        assert (found is not None) == (number in kept)
        if found:
            assert again.response(again.read(found)[0]).text == f"said {number}"
            signal, wanted = again.signal(found), signal_of(number, 2)
            assert (signal is not None) == bool(number % 2)
            if signal:
                assert signal.target_ids_T.tolist() == wanted.target_ids_T.tolist()
    assert (tmp_path / "damaged" / path.name).is_file()


def test_older_segments_are_read_and_those_that_are_cut_are_noticed(tmp_path):
    folder = Folder(str(tmp_path))
    path = filled(folder, signals=False)
    lines = path.read_bytes().split(b"\n")[1:]
    path.write_bytes(b"\n".join(lines))
    assert len(opened(folder)) == 6
    path.write_bytes(b"\n".join(lines)[:-30])
    with pytest.raises(DamagedError, match="cut short"):
        opened(folder)
    path.write_bytes(b"")
    with pytest.raises(DamagedError, match="it is empty"):
        opened(folder)


def test_a_damaged_record_of_the_engine_names_its_file(tmp_path):
    folder = Folder(str(tmp_path / "ledger/abc"))
    filled(folder)
    (tmp_path / "ledger/abc/engine.json").write_bytes(b"")
    with pytest.raises(DamagedError, match=r"engine\.json is damaged: it is no JSON.*Remove"):
        opened(folder).engine()


def test_addresses_are_stored_without_secrets(tmp_path):
    folder = Folder(str(tmp_path))
    ledger = Ledger(folder, parse_openai)
    address = "https://me:PASS@host/v1?sig=SIGNED"
    ledger.describe({"model": f"{address}: m"})
    ledger.start({**FACTS, "endpoint": address})
    error = {"message": f"cannot reach {address}", "status": 0, "transient": True}
    ledger.add(stored("x", {"error": error}), None)
    ledger.close()
    assert ledger.find(key("x")).transient
    kept = b"".join(folder.read(name) for name in folder.files())
    assert b"PASS" not in kept and b"SIGNED" not in kept and kept.count(b"https://host/v1") == 3
    assert folder.read_json(CONTEXT_FILE)["model"] == "https://host/v1 m"
