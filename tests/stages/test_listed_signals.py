"""A teacher behind an endpoint: its listed log-probabilities become the signal, by their bytes."""

import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import torch
from aiohttp import web
from transformers import AutoModelForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode

from retort.data.encoding import load_tokenizer, render_one
from retort.data.token_bytes import TokenBytes
from retort.errors import SpecError, StageError
from retort.events import Reporter
from retort.jobs import serve
from retort.jobs.source_digests import source_digests
from retort.records import Response
from retort.spec import build, recipes
from retort.stages.curate import curate
from retort.stages.export.formats import Student, find_format
from retort.stages.generate import generate
from retort.stages.generate.check import check
from retort.stages.prepare import prepare
from retort.stages.stage import TOKENS, read_signals
from retort.stages.train import loop
from retort.stages.train.check import check as train_check
from retort.store import open_store
from retort.store.signals import Signal, SignalFile
from tests.support import zoo
from tests.support.listing import completion, entry, token, words
from tests.support.misbehaving import SECRET, bad, endpoint, openai_body, running
from tests.support.providers import OpenAIProvider
from tests.support.servers import free_port
from tests.support.stages import RUNTIME, job, run, run_captures, stage_of
from tests.support.tiny import save_model, write_rows


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)


@dataclass(frozen=True)
class Captured:
    """What a run of generate left."""

    facts: dict[str, Any]
    responses: list[Response]
    signals: dict[str, Signal]
    table: TokenBytes
    files: dict[str, bytes]

    def spelled(self, ids) -> list[bytes | None]:
        return [self.table.spelled[i] for i in ids]


def captured(raw: dict[str, Any], store: Path, report: Reporter | None = None) -> Captured:
    facts, responses = run(raw, str(store), *([report] if report else []))
    out = stage_of("generate", raw, str(store), {}).out
    files = {name: out.read(name) for name in out.files() if not name.startswith("scratch")}
    table = TokenBytes.from_json(files["tokens.json"].decode())
    return Captured(facts, responses, read_signals(out), table, files)


def asking(path: Path, *questions: str) -> Path:
    chats = [{"messages": [{"role": "user", "content": text}]} for text in questions]
    rows = [{"id": text, **chat} for text, chat in zip(questions, chats, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def at(url: str, rows: Path, **knobs: Any) -> dict[str, Any]:
    runtime = {**RUNTIME, "max_attempts": 1, "batch_poll_seconds": 0.05}
    runtime |= knobs.pop("runtime", {})
    made = job("tiny", rows, "openai", endpoint=url, **{"top_k": 3, "runtime": runtime, **knobs})
    made["train"]["student"] = str(save_model(rows.parent / "student", hidden=32, layers=1))
    return made


END = entry(token("<end>", 0.9), token("!", 0.05), token("<|other|>", 0.03))
BODIES = {
    "plain": completion("a b", [*words("a", " b"), END]),
    "short": completion("c", [entry(token("c", 0.5))]),
    "alike": completion("a", [entry(token("a", 0.5), token("<end>", 0.25), token("a", 0.125))]),
    "halves": completion("né", words("n", b"\xc3", b"\xa9")),
    "cut": completion("a", words("a"), "length"),
    "odd": completion("a", [{"token": "a", "bytes": "a", "logprob": "high"}]),
    "other": completion("a b", words("a", "b")),
    "none": completion("a", None),
    "refused": completion("", words("a"), message={"refusal": "I cannot"}),
    "outside": completion(
        "a", [{**token("a", 0.5), "logprob": -9999.0, "top_logprobs": [token("b", 0.75)]}]
    ),
}
ORDER = tuple(BODIES)


async def listing(seen, request, text):
    return web.json_response(BODIES[text])


def test_listed_tokens_become_the_signal_and_what_is_odd_is_text_only(tmp_path):
    rows, notes = asking(tmp_path / "train.jsonl", *ORDER), []
    with endpoint(listing) as (seen, url):
        knobs = {"shard_size": 2, "top_k": 3}
        found = captured(at(url, rows, **knobs), tmp_path / "a", Reporter(notes.append))
        again = captured(at(url, rows, **knobs), tmp_path / "b")
    assert {(b["logprobs"], b["top_logprobs"]) for b in seen.bodies} == {(True, 3)}
    assert set(found.signals) == {"plain", "short", "alike", "halves", "cut", "outside"}
    facts = found.facts
    assert (facts["num_signals"], facts["num_text_only"]) == (6, 3)
    assert facts["text_only_for"] and any("3 of 9 answers have no signal" in str(n) for n in notes)
    assert facts["parity"] is None and "cannot be run plainly" in facts["no_parity"]
    assert facts["vocabulary"] == len(found.table.spelled)
    # All shards are over one table; the same answers are the same bytes.
    packed = [data for name, data in found.files.items() if name.endswith(".safetensors")]
    assert len(packed) == 4
    assert {SignalFile.open(data).vocabulary for data in packed} == {facts["vocabulary"]}
    assert found.files == again.files
    for response in found.responses:
        if signal := found.signals.get(response.id):
            own = found.spelled(signal.target_ids_T)
            assert b"".join(own[: len(own) - (response.id == "plain")]) == response.text.encode()
            assert all(len(set(ids)) == 3 for ids in signal.ids_TK.tolist())
    spelled = [x for x in found.table.spelled if x is not None]
    assert len(spelled) == len(set(spelled))


def listed(found: Captured, name: str, place: int) -> dict[Any, float]:
    """The probabilities of a place by what their tokens spell; ends by END."""
    signal, table = found.signals[name], found.table
    ids = signal.ids_TK[place].tolist()
    names = ["END" if i in table.ends else table.spelled[i] or i for i in ids]
    return dict(zip(names, np.exp(signal.logprobs_TK[place]).tolist(), strict=True))


def test_what_is_stored_of_each_kind_of_token(tmp_path):
    with endpoint(listing) as (_, url):
        found = captured(at(url, asking(tmp_path / "t.jsonl", *ORDER)), tmp_path / "store")
    (end,) = found.table.ends
    assert found.table.spelled[end] is None
    assert found.signals["plain"].target_ids_T[-1] == end
    near = {"abs": 0.005}
    last = listed(found, "plain", 2)
    assert last["END"] == pytest.approx(0.9, **near) and last[b"!"] == pytest.approx(0.05, **near)
    assert b"<|other|>" not in last and len(last) == 3
    # An end is an end in every list, though its form is that of a text; equal strings are one.
    alike = listed(found, "alike", 0)
    assert alike[b"a"] == pytest.approx(0.625, **near)
    assert alike["END"] == pytest.approx(0.25, **near)
    # A list of one token is filled with tokens that nothing else is, and that have no mass.
    short = listed(found, "short", 0)
    assert short.pop(b"c") == pytest.approx(0.5, **near)
    assert set(short) <= {0, 1, 2} and max(short.values()) < 1e-12
    assert math.exp(found.signals["short"].tail_T[0]) == pytest.approx(0.5, **near)
    assert found.spelled(found.signals["halves"].target_ids_T) == [b"n", b"\xc3", b"\xa9"]
    # Unknown outside its list: no more than all that is outside.
    assert math.exp(found.signals["outside"].target_logprobs_T[0]) == pytest.approx(0.25, **near)
    mass = np.concatenate([1 - np.exp(s.tail_T) for s in found.signals.values()]).mean()
    assert found.facts["top_k_mass"] == pytest.approx(mass, abs=0.005)


def named(raw: dict[str, Any], *names: str) -> dict[str, Any]:
    """The job with its teacher once by each name."""
    own = {key: raw["generate"][key] for key in ("teacher", "engine", "endpoint")}
    knobs = {key: value for key, value in raw["generate"].items() if key not in own}
    several = {"teachers": dict.fromkeys(names, own), "route": "agreement"}
    return {**raw, "generate": {**knobs, **several}}


def test_one_endpoint_among_teachers_keeps_its_tokens_and_several_are_refused(tmp_path):
    rows, store = asking(tmp_path / "train.jsonl", *ORDER), str(tmp_path / "several")
    with endpoint(listing) as (_, url):
        alone = captured(at(url, rows), tmp_path / "alone")
        raw = named(at(url, rows), "far")
        check(build(raw))
        run_captures(raw, store)
        with pytest.raises(
            SpecError, match=r"endpoint \(far, other\) is not known; set .*top_k: 0"
        ):
            check(build(named(at(url, rows), "far", "other")))
        check(build(named(at(url, rows, top_k=0), "far", "other")))
    spec = build(raw)
    name = recipes(spec, source_digests(spec))["generate"].name
    union = open_store(store).artifact("generate", name)
    assert TokenBytes.from_json(union.read(TOKENS)) == alone.table
    signals = read_signals(union)
    assert {key: signal.target_ids_T.tolist() for key, signal in signals.items()} == {
        key: signal.target_ids_T.tolist() for key, signal in alone.signals.items()
    }


class Listing(OpenAIProvider):
    """Its answers list their tokens."""

    def shape(self, custom_id, text, fate):
        row = super().shape(custom_id, text, fate)
        row["response"]["body"] = BODIES[text]
        return row


def test_batches_give_what_live_answers_give(tmp_path):
    rows, provider = asking(tmp_path / "train.jsonl", *ORDER), Listing()
    with endpoint(listing) as (_, url):
        live = captured(at(url, rows), tmp_path / "live")
    with running(provider.app()) as url:
        found = captured(at(url, rows, runtime={"batch": True}), tmp_path / "batch")
    asked = [orjson.loads(line)["body"] for line in provider.files["file-0"].splitlines()]
    assert {(body["logprobs"], body["top_logprobs"]) for body in asked} == {(True, 3)}
    assert found.files == live.files


REFUSALS = {
    "lists no log-probabilities": lambda text: web.json_response(openai_body(text)),
    "'logprobs' is not supported with this model": lambda text: bad(
        400, "Unsupported parameter: 'logprobs' is not supported with this model."
    ),
    "not allowed to request logprobs": lambda text: bad(
        403, "You are not allowed to request logprobs from this model"
    ),
}


@pytest.mark.parametrize("pilot_rows", [0, 6])
@pytest.mark.parametrize("cause", REFUSALS)
def test_a_model_that_gives_none_is_refused_by_its_first_answers(cause, pilot_rows, tmp_path):
    async def silent(seen, request, text):
        return REFUSALS[cause](text)

    rows = asking(tmp_path / "train.jsonl", *map(str, range(40)))
    spending = {"pilot_rows": pilot_rows}
    with endpoint(silent) as (seen, url):
        raw = at(url, rows, spending=spending)
        for _ in range(2):  # what was answered is not asked again
            with pytest.raises(StageError, match=rf"tiny at {url} .*{cause}.*top_k: 0") as error:
                run(raw, str(tmp_path / "store"))
            assert len(seen.bodies) == (pilot_rows or 4)
    assert SECRET not in str(error.value)


def test_a_job_of_few_rows_is_refused_as_well_when_no_answer_has_a_signal(tmp_path):
    async def silent(seen, request, text):
        return web.json_response(openai_body(text))

    with endpoint(silent) as (seen, url):
        raw = at(url, asking(tmp_path / "train.jsonl", "a", "b"))
        for _ in range(2):
            with pytest.raises(StageError, match="lists no log-probabilities"):
                run(raw, str(tmp_path / "store"))
        assert len(seen.bodies) == 2
        raw["generate"]["top_k"] = 0
        assert run(raw, str(tmp_path / "store"))[0]["states"] == {"accepted": 2}
    assert "logprobs" not in seen.bodies[-1]


def test_validate_says_how_many_an_endpoint_lists_at_most(tmp_path):
    rows = asking(tmp_path / "train.jsonl", "a")
    raw = at("https://api.openai.com/v1", rows, top_k=50)
    assert any("top_k: 50; an endpoint lists at most 20" in line for line in check(build(raw)))
    raw["generate"]["top_k"] = 20
    assert not any("at most" in line for line in check(build(raw)))
    raw["generate"]["engine"] = "anthropic"
    with pytest.raises(SpecError, match="anthropic gives no signal"):
        check(build(raw))


def agrees(found: Captured, local: Captured, pieces: list[bytes], end: int) -> int:
    """Compares the signals of the rows that have one with those captured locally; returns how many
    places of the lists were compared."""
    answers, differences = {r.id: r for r in local.responses}, []
    assert found.table.ends
    for response in found.responses:
        signal, whole = found.signals.get(response.id), local.signals[response.id]
        if signal is None:
            continue
        ids, own = answers[response.id].token_ids, found.spelled(signal.target_ids_T)
        assert response.text == answers[response.id].text
        assert b"".join(x for x in own if x is not None) == response.text.encode()
        assert len(own) == len(ids)
        for place, i in enumerate(ids):
            mine = listed(found, response.id, place)
            assert own[place] == pieces[i] or (i == end and own[place] is None)
            theirs = zip(whole.ids_TK[place], whole.logprobs_TK[place], strict=True)
            for other, value in theirs:
                name = "END" if other == end else pieces[other]
                if name in mine and value > math.log(1e-3):
                    differences.append(abs(math.log(mine[name]) - value))
            gap = signal.target_logprobs_T[place] - whole.target_logprobs_T[place]
            assert abs(gap) < 0.06
    assert max(differences) < 0.12 and np.mean(differences) < 0.01
    return len(differences)


def local_capture(model: Path, rows: Path, store: Path, **knobs: Any) -> Captured:
    runtime = {**RUNTIME, "parity_samples": 0}
    raw = job(model, rows, "transformers", top_k=8, dtype="float32", runtime=runtime, **knobs)
    facts, responses = run(raw, str(store))
    out = stage_of("generate", raw, str(store), {}).out
    return Captured(facts, responses, read_signals(out), TokenBytes((), frozenset()), {})


def test_vllms_server_gives_what_is_captured_here(servers_folder, vllm_url, tmp_path):
    model, rows = (
        servers_folder / "vllm" / "model",
        write_rows(tmp_path / "train.jsonl", 24, seed=5),
    )
    knobs = {"max_tokens": 12, "min_success_ratio": 0.0}
    found = captured(at(vllm_url, rows, top_k=8, **knobs), tmp_path / "there")
    local = local_capture(model, rows, tmp_path / "here", max_model_len=128, **knobs)
    vocabulary = json.loads((model / "tokenizer.json").read_text())["model"]["vocab"]
    pieces = [text.encode() for text in sorted(vocabulary, key=vocabulary.get)]
    assert agrees(found, local, pieces, end=2) > 300
    assert len(found.signals) >= 12
    assert len(found.signals) + found.facts["num_text_only"] == 24


def test_llama_cpps_server_gives_what_is_captured_here(tmp_path, monkeypatch):
    pytest.importorskip("xllamacpp")
    size = len(zoo.train_tokenizer(zoo.LLAMA))  # a model that is trained samples no padding
    monkeypatch.setattr(zoo, "VOCABULARY", size)
    model, questions = zoo.save_family("llama-3.1", tmp_path), [f"Ada has {n}?" for n in range(60)]
    end = often_ending(model, questions)
    form, name = find_format("gguf:f32")
    (tmp_path / "gguf").mkdir()
    form.write(Student(model), name, tmp_path / "gguf")
    rows = asking(tmp_path / "train.jsonl", *questions)
    address = serve.Address("tiny", port=free_port())
    with serve.serving(tmp_path / "gguf", "gguf:f32", address):
        found = captured(at(address.url, rows, top_k=8, max_tokens=3), tmp_path / "there")
    local = local_capture(model, rows, tmp_path / "here", max_tokens=3)
    vocabulary = json.loads((model / "tokenizer.json").read_text())["model"]["vocab"]
    names = sorted(vocabulary, key=vocabulary.get)
    byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
    pieces = [bytes(byte_of[c] for c in name) for name in names]
    assert agrees(found, local, pieces, end) > 200
    # Parts of characters, of which a model of random weights says many, are the rest.
    assert 10 < len(found.signals) < 60
    assert len(found.signals) + found.facts["num_text_only"] == 60


def often_ending(folder: Path, questions: list[str]) -> int:
    """Lets the model end where its most frequent second token was; returns the end token."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), load_tokenizer(str(folder))
    second = Counter[int]()
    for question in questions:
        ids = render_one(tokenizer, [{"role": "user", "content": question}])
        with torch.inference_mode():
            made = model.generate(torch.tensor([ids]), max_new_tokens=2, do_sample=False)
        second[int(made[0, -1])] += 1
    end, weights = tokenizer.eos_token_id, model.lm_head.weight.data
    often = second.most_common(1)[0][0]
    weights[[end, often]] = weights[[often, end]]
    model.save_pretrained(folder)
    return end


def test_a_student_learns_what_an_endpoint_listed_and_the_text_of_other_rows(tmp_path):
    rows, notes = asking(tmp_path / "train.jsonl", "plain", "short", "cut", "odd"), []
    store, inputs = str(tmp_path / "store"), {}
    with endpoint(listing) as (_, url):
        raw = at(url, rows, max_tokens=4)
        raw["train"] |= {"num_epochs": 4, "learning_rate": 0.01, "batch_size": 4}
        assert "the signal of the teacher's endpoint is learned by bytes" in train_check(build(raw))
        for name, function in (("prepare", prepare), ("generate", generate), ("curate", curate)):
            stage = stage_of(name, raw, store, inputs)
            stage.out.commit({"facts": function(stage)})
            inputs[name] = stage.out.finished()
    stage = stage_of("train", raw, store, inputs)
    facts = loop.fit(stage.arguments(), Reporter(notes.append))
    # Known: a, the space, b and the end of "a b"; c; a cut "a". Not: the end of c; a and its end.
    assert facts["share_known"] == pytest.approx(6 / 9)
    assert facts["warnings"] == [
        "1 responses are learned from by their text alone: the teacher's answer has no signal"
    ]
    curve = stage.out.read_json("history.json")
    assert curve[-1]["forward_kl"] < curve[0]["forward_kl"]
