"""Several teachers: each is asked its own rows and only what is missing, and all become one
artifact that says who wrote what."""

import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from retort.data import token_bytes
from retort.data.token_bytes import TokenBytes
from retort.errors import DataError, SpecError, StageError
from retort.jobs import inspection
from retort.jobs.preflight import check
from retort.jobs.source_digests import source_digests
from retort.spec import build, recipes
from retort.stages.curate import curate
from retort.stages.generate.fusion import fuse
from retort.stages.stage import TOKENS, read_responses, read_signals
from retort.stages.train.training_rows import build as build_rows
from retort.store import Folder, open_store
from tests.conftest import environment
from tests.stages.test_generate_killed import kill
from tests.support.stages import RUNTIME, job, num_files, run, run_captures, segments, stage_of
from tests.support.tiny import save_model

TOPICS = ("sums", "words", "sums", "names")


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    """Two teachers of one tokenizer, which answer differently."""
    folder = tmp_path_factory.mktemp("models")
    return {name: save_model(folder / name, seed=seed) for seed, name in enumerate("abc", start=3)}


@pytest.fixture
def rows(tmp_path) -> Path:
    """Twelve questions, of which six are sums."""
    path = tmp_path / "train.jsonl"
    lines = [
        {
            "id": f"r{n}",
            "question": f"{n} and {n} ?",
            "answer": "1",
            "metadata": {"topic": TOPICS[n % 4]},
        }
        for n in range(12)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def store(tmp_path) -> str:
    return str(tmp_path / "store")


def taught(models, rows, route, names="ab", engine="echo", **knobs) -> dict:
    """A job of teachers that are named as their folders."""
    raw = job(models["a"], rows, engine, **knobs)
    del raw["generate"]["teacher"]
    raw["generate"] |= {
        "teachers": {name: {"teacher": str(models[name])} for name in names},
        "route": route,
    }
    raw["train"]["losses"] = [{"name": "cross_entropy"}]
    return raw


def by_topic(to, **more) -> dict:
    return {"by": "metadata.topic", "to": to, **more}


def test_each_row_goes_to_its_topics_teacher_and_a_further_teacher_is_asked_alone(
    models, rows, store
):
    first = taught(models, rows, by_topic({"sums": "a"}, default="b"))
    facts, responses = run_captures(first, store)
    assert (facts["generate-a"]["num_asked"], facts["generate-b"]["num_asked"]) == (6, 6)
    wrote = {r.example_id: r.teacher for r in responses}
    assert wrote == {f"r{n}": "a" if n % 2 == 0 else "b" for n in range(12)}
    assert [r.id for r in responses] == [f"r{n}" for n in range(12)]
    own = facts["generate"]["teachers"]
    assert [own[name]["num_responses"] for name in "ab"] == [6, 6]
    assert own["a"]["spending"]["output_tokens"] == sum(
        r.num_tokens for r in responses if r.teacher == "a"
    )
    more = taught(models, rows, by_topic({"sums": "a", "names": "c"}, default="b"), names="abc")
    facts, responses = run_captures(more, store)
    # The capture of a stands; that of b has fewer rows now, all of them in its ledger.
    assert "generate-a" not in facts
    assert (facts["generate-b"]["num_asked"], facts["generate-c"]["num_asked"]) == (0, 3)
    assert Counter(r.teacher for r in responses) == {"a": 6, "b": 3, "c": 3}
    assert [r.example_id for r in responses] == [f"r{n}" for n in range(12)]


def test_where_all_answer_each_is_asked_as_if_it_were_alone(models, rows, store):
    run(job(models["b"], rows, "echo"), store)
    facts, responses = run_captures(taught(models, rows, "agreement"), store)
    assert (facts["generate-a"]["num_asked"], facts["generate-b"]["num_asked"]) == (12, 0)
    assert [r.id for r in responses[:4]] == ["r0", "r0@b", "r1", "r1@b"]
    assert {r.teacher for r in responses} == {"a", "b"}
    alone = build(job(models["b"], rows, "echo"))
    several = build(taught(models, rows, "agreement"))
    of_alone = recipes(alone, source_digests(alone))["generate"]
    assert of_alone.name == recipes(several, source_digests(several))["generate-b"].name


def test_a_value_without_a_teacher_is_refused_before_anything_is_asked(models, rows, store):
    raw = taught(models, rows, by_topic({"sums": "a", "words": "b"}))
    words = "has topic: 'names' in its metadata, and that leads to none of the teachers a, b"
    with pytest.raises(DataError, match=words):
        check(build(raw), open_store(store))
    with pytest.raises(DataError, match=words):
        run_captures(raw, store)
    assert num_files(store) == 0


def test_validate_names_each_teacher_with_its_engine_and_its_share(models, rows, store):
    lines = check(
        build(taught(models, rows, by_topic({"sums": "a"}, default="b"))), open_store(store)
    )
    shown = "\n".join(lines)
    assert "teacher a: engine echo for the teacher" in shown
    assert f"generate.teacher {models['b']}" in shown
    assert "teacher b: answers 50% of these rows" in shown


def test_validate_says_what_several_teachers_may_cost_together(models, rows, store):
    def cost(*each) -> str:
        raw = taught(models, rows, by_topic({"sums": "a"}, default="b"))
        raw["generate"]["spending"] = {"price_per_hour": 1.0, "max_cost": each[0]}
        for name, most in zip("ab", each, strict=False):
            raw["generate"]["teachers"][name]["spending"] = {"max_cost": most}
        return "".join(line for line in check(build(raw), open_store(store)) if "max_cost" in line)

    assert "max_cost 10 for each of 2 teachers: 20 together" in cost(10)
    assert "max_cost 10 for a, 2.5 for b: 12.5 together" in cost(10, 2.5)
    assert cost(10, None) == ""


def test_a_capture_that_its_budget_ended_continues_with_what_is_missing(models, rows, store):
    raw = taught(models, rows, by_topic({"sums": "a"}, default="b"))
    each, most = {"price_per_hour": 1.0, "pilot_rows": 0}, 880
    raw["generate"]["teachers"]["b"]["spending"] = {**each, "max_tokens_total": most}
    with pytest.raises(StageError, match="max_tokens_total: 880"):
        run_captures(raw, store)
    num_paid = len(segments(store))
    assert 6 < num_paid < 12
    raw["generate"]["teachers"]["b"]["spending"]["max_tokens_total"] = 100 * most
    facts, responses = run_captures(raw, store)
    assert set(facts) == {"generate-b", "generate"}
    assert facts["generate-b"]["num_asked"] == 12 - num_paid
    assert len(responses) == 12
    spent = facts["generate"]["teachers"]
    assert spent["a"]["spending"]["cost"] == 0 < spent["b"]["spending"]["cost"]


RUN = """
import json, sys
from tests.support.stages import run_captures
run_captures(json.loads(sys.argv[1]), sys.argv[2])
"""


def test_a_capture_killed_at_the_second_teacher_keeps_the_first_and_asks_nothing_twice(
    models, rows, store
):
    topics = {n: "sums" if n < 300 else "words" for n in range(4_000)}
    lines = (
        {"id": f"r{n}", "question": f"{n} ?", "metadata": {"topic": topic}}
        for n, topic in topics.items()
    )
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    raw = taught(models, rows, by_topic({"sums": "a", "words": "b"}), spending={"pilot_rows": 0})
    command = [sys.executable, "-c", RUN, json.dumps(raw), store]
    process = subprocess.Popen(command, env=environment(), start_new_session=True)
    deadline = time.monotonic() + 60
    while num_files(store) < 4 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    kill(process, store)
    num_paid = len(segments(store))
    assert 300 < num_paid < 4_000
    facts, responses = run_captures(raw, store)
    assert set(facts) == {"generate-b", "generate"}
    assert facts["generate-b"]["num_asked"] == 4_000 - num_paid
    assert len({entry["key"] for entry in segments(store)}) == 4_000
    assert Counter(r.teacher for r in responses) == {"a": 300, "b": 3_700}


def test_rows_and_why_tell_what_each_teacher_has(models, rows, store):
    raw = taught(models, rows, by_topic({"sums": "a"}, default="b"))
    run_captures(raw, store)
    spec, opened = build(raw), open_store(store)
    assert sorted(e.id for e, _ in inspection.rows(spec, opened)) == sorted(
        f"r{n}" for n in range(12)
    )
    asking = inspection.asking(spec)
    assert set(asking) == {"generate-a", "generate-b"}
    said = inspection.what_is_asked(asking["generate-b"], opened)
    assert said == "6 responses are in the ledger, none is requested"


def test_one_pass_over_the_first_ones_tokens_by_each_other_teacher_is_fused(models, rows, store):
    knobs = {"top_k": 3, "max_tokens": 6, "max_model_len": 64, "min_success_ratio": 0.0}
    runtime = {**RUNTIME, "parity_samples": 2}
    raw = taught(models, rows, "all", engine="transformers", runtime=runtime, **knobs)
    facts, responses = run_captures(raw, store)
    assert facts["generate-b"]["mode"] == "score"
    assert facts["generate-b"]["parity"]["kl_nats"] < 5e-3
    fused = facts["generate"]["fusion"]
    assert (fused["num_fused"], fused["num_alone"]) == (12, 0)
    assert 0 < fused["mean_bound"] <= fused["largest_bound"] < 1
    assert {r.teacher for r in responses} == {"a"}
    opened = open_store(store)
    spec = build(raw)
    wanted = recipes(spec, source_digests(spec))
    of = {
        name: read_signals(opened.artifact("generate", wanted[name].name))
        for name in ("generate-a", "generate-b", "generate")
    }
    for response in responses:
        parts = [of[name][response.id] for name in ("generate-a", "generate-b")]
        assert parts[1].target_ids_T.tolist() == response.token_ids
        size = facts["generate-a"]["vocabulary"]
        exact, _ = fuse(parts, [1.0, 1.0], [size, size], 3)
        read = of["generate"][response.id]
        assert read.target_ids_T.tolist() == response.token_ids
        gap = np.abs(np.exp(exact.target_logprobs_T) - np.exp(read.target_logprobs_T))
        assert gap.max() < 0.02  # the store rounds
    assert_learned(raw, store, {r.id: r.token_ids for r in responses})
    raw["generate"]["route"] = {"by": "all", "fusion": "min_ce"}
    again, _ = run_captures(raw, store)
    assert set(again) == {"generate"}  # another fusion asks nobody
    assert again["generate"]["fusion"]["largest_bound"] == 0


def test_signals_of_routed_rows_are_those_of_their_teachers_however_they_pad(
    models, rows, store, tmp_path
):
    padded = save_model(tmp_path / "padded", seed=8, vocabulary=88)
    (padded / "generation_config.json").write_text('{"eos_token_id": [2, 7]}')
    runtime = {**RUNTIME, "parity_samples": 0}
    knobs = {"top_k": 3, "max_tokens": 6, "max_model_len": 64, "runtime": runtime}
    route = by_topic({"sums": "a"}, default="b")
    raw = taught({**models, "b": padded}, rows, route, engine="transformers", **knobs)
    facts, responses = run_captures(raw, store)
    sizes = [facts[f"generate-{name}"]["vocabulary"] for name in "ab"]
    assert sizes[0] < sizes[1] == 88
    opened, spec = open_store(store), build(raw)
    wanted = recipes(spec, source_digests(spec))
    of = {
        name: read_signals(opened.artifact("generate", wanted[name].name))
        for name in ("generate-a", "generate-b", "generate")
    }
    assert facts["generate"]["num_signals"] == len(of["generate"]) == 12
    for response in responses:
        own = of[f"generate-{response.teacher}"][response.id]
        both = of["generate"][response.id]
        assert own.target_ids_T.tolist() == both.target_ids_T.tolist() == response.token_ids
        assert own.ids_TK.tolist() == both.ids_TK.tolist()
        gap = np.abs(np.exp(own.logprobs_TK) - np.exp(both.logprobs_TK))
        assert gap.max() < 0.02  # one of them is stored a second time
    union = opened.artifact("generate", wanted["generate"].name)
    spelled = TokenBytes.from_json(union.read(TOKENS))
    assert spelled.spelled == token_bytes.load(models["a"]).spelled
    assert spelled.ends == {2, 7}  # those of both


def assert_learned(raw, store, answers) -> None:
    """The student's rows are the first teacher's ids, each with the fused distributions."""
    signal = {"train": {**raw["train"], "losses": [{"name": "forward_kl"}]}}
    spec, opened = build({**raw, **signal}), open_store(store)
    wanted = recipes(spec, source_digests(spec))
    inputs = {
        name: opened.artifact(name, wanted[name].name).finished()
        for name in ("prepare", "generate")
    }
    curated = stage_of("curate", {**raw, **signal}, store, inputs)
    inputs["curate"] = curated.out.commit({"facts": curate(curated)})
    stage = stage_of("train", {**raw, **signal}, store, inputs)
    data = build_rows(stage, Path(spec.train.student), [2])
    learned = {row.id: row.labels[row.first :] for row, _ in data.train}
    assert learned and all(ids == answers[name] for name, ids in learned.items())
    assert all(signal is not None for _, signal in data.train)
    assert set(data.teachers.values()) == {"a"}


def test_signals_of_two_tokenizers_are_refused_and_their_text_is_not(models, rows, store, tmp_path):
    other = tmp_path / "other"
    save_model(other, seed=9)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    both = {**models, "b": other}
    route = by_topic({"sums": "a"}, default="b")
    with_signals = taught(both, rows, route, engine="transformers", top_k=3)
    with pytest.raises(SpecError, match="a, b have different tokenizers"):
        check(build(with_signals), open_store(store))
    facts, responses = run_captures(taught(both, rows, route), store)
    assert "token_map_sha256" not in facts["generate"]
    assert len(responses) == 12


def test_the_artifact_of_a_single_teacher_is_read_as_before(models, rows, store):
    _, responses = run(job(models["a"], rows, "echo"), store)
    assert {r.teacher for r in responses} == {None}
    old = responses[0].__dict__ | {"token_ids": []}
    del old["teacher"]
    folder = Folder(f"{store}/old")
    folder.write("responses-00000.jsonl", json.dumps(old).encode() + b"\n")
    assert read_responses(folder)[0].id == responses[0].id
