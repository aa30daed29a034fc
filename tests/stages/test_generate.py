"""generate: what is paid for is never asked again, no row is misjoined, and limits are hard."""

import json
from collections import Counter
from pathlib import Path

import pytest

from retort.errors import DataError, StageError
from retort.events import SILENT, Reporter
from retort.stages.generate.parity import parity
from retort.stages.stage import read_signals
from tests.support.stages import RUNTIME, job, run, segments, stage_of
from tests.support.tiny import save_model, write_rows

ASKED = "num_asked"


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model") / "teacher", seed=3)


@pytest.fixture
def rows(tmp_path):
    return write_rows(tmp_path / "train.jsonl", 30, seed=1)


@pytest.fixture
def store(tmp_path):
    return str(tmp_path / "store")


def test_nothing_is_asked_twice_and_only_new_rows_are_asked(model, rows, store):
    first, responses = run(job(model, rows, "echo"), store)
    assert (first[ASKED], len(responses)) == (30, 30)
    assert {r.text for r in responses} == {json.loads(x)["question"] for x in rows.open()}
    again, same = run(job(model, rows, "echo"), store)
    assert (again[ASKED], same) == (0, responses)
    more = [json.loads(line) for line in rows.open()]
    more.insert(7, {"id": "new", "question": "new ?", "answer": "1"})
    grown, all_of_them = run(job(model, write(rows, more), "echo"), store)
    assert grown[ASKED] == 1
    assert [r.example_id for r in all_of_them] == [row["id"] for row in more]


@pytest.mark.parametrize(
    ("knobs", "asked"),
    [
        ({"temperature": 0.5}, 30),
        ({"seed": 1}, 0),  # greedy: no seed is used
        ({"temperature": 0.5, "n": 2}, 60),
        ({"max_tokens": 400}, 0),
        ({"max_tokens": 2}, 0),
        ({"shard_size": 7}, 0),
        ({"runtime": {**RUNTIME, "max_num_seqs": 2}}, 0),
        ({"spending": {"pilot_rows": 3, "max_cost": 5, "price_per_hour": 1}}, 0),
        ({"min_success_ratio": 0.1}, 0),
    ],
)
def test_only_a_knob_that_changes_the_answer_asks_again(model, rows, store, knobs, asked):
    run(job(model, rows, "echo"), store)
    assert run(job(model, rows, "echo", **knobs), store)[0][ASKED] == asked


def test_a_system_prompt_or_tools_make_another_request(model, store, tmp_path):
    chat = [{"role": "user", "content": "hi"}]
    tools = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
    several = [
        {"id": "plain", "messages": chat},
        {"id": "rude", "messages": [{"role": "system", "content": "be rude"}, *chat]},
        {"id": "kind", "messages": [{"role": "system", "content": "be kind"}, *chat]},
        {"id": "tools", "messages": chat, "tools": tools},
    ]
    facts, responses = run(job(model, write(tmp_path / "t.jsonl", several), "echo"), store)
    assert facts[ASKED] == 4
    assert len({entry["key"] for entry in segments(store)}) == 4
    assert [r.example_id for r in responses] == ["plain", "rude", "kind", "tools"]


def test_a_higher_limit_asks_only_what_was_cut_off(model, rows, store):
    run(job(model, rows, "echo", max_tokens=10), store)
    facts, responses = run(job(model, rows, "echo", max_tokens=11), store)
    longer = [r for r in responses if len(r.text) > 10]
    assert 0 < len(longer) < 30
    assert facts[ASKED] == len(longer)
    assert facts["states"] == {"accepted": 30}


def test_a_cut_answer_is_continued_and_equals_an_uncut_one(model, rows, tmp_path):
    runtime = {**RUNTIME, "parity_samples": 0}
    knobs = {"top_k": 3, "max_model_len": 64, "runtime": runtime}
    whole = run(job(model, rows, "transformers", max_tokens=20, **knobs), str(tmp_path / "a"))[1]
    store = str(tmp_path / "b")
    run(job(model, rows, "transformers", max_tokens=8, **knobs), store)
    continued, responses = run(job(model, rows, "transformers", max_tokens=20, **knobs), store)
    assert 0 < continued[ASKED] == sum(len(r.token_ids) > 8 for r in whole)
    same = [a.token_ids == b.token_ids for a, b in zip(responses, whole, strict=True)]
    assert sum(same) >= 28  # a tie may fall either way in a batch of another shape
    retrying = job(model, rows, "transformers", max_tokens=8, max_tokens_retry=20, **knobs)
    assert run(retrying, store)[0][ASKED] == 0
    in_one_go = run(retrying, str(tmp_path / "c"))
    assert in_one_go[0][ASKED] == 30 + continued[ASKED]
    assert [len(r.token_ids) for r in in_one_go[1]] == [len(r.token_ids) for r in responses]


def test_the_signal_of_a_continued_answer_belongs_to_its_ids(model, rows, store):
    knobs = {"top_k": 3, "max_model_len": 64, "max_tokens": 8, "max_tokens_retry": 20}
    raw = job(model, rows, "transformers", **knobs)
    facts, responses = run(raw, store)
    assert facts["parity"]["kl_nats"] < 5e-3
    assert facts["dtype"] == "float32"
    assert facts["logprobs_mode"] == "raw_logprobs"
    assert facts["model"]
    assert facts["token_map_sha256"]
    assert facts["template_sha256"]
    signals = read_signals(stage_of("generate", raw, store, {}).out)
    assert set(signals) == {r.id for r in responses}
    for response in responses:
        assert signals[response.id].target_ids_T.tolist() == response.token_ids


def test_several_answers_and_turns_are_joined_to_their_example(model, store, tmp_path):
    turns = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "not the teacher's"},
        {"role": "user", "content": "two"},
    ]
    path = write(tmp_path / "t.jsonl", [{"id": "x", "messages": turns}, {"id": "y", "prompt": "z"}])
    raw = job(model, path, "echo", task_type="conversation", temperature=1.0, n=2)
    facts, responses = run(raw, store)
    assert facts["num_responses"] == 6
    found = [(r.id, r.example_id, r.sample, r.turn, r.text) for r in responses]
    assert found == [
        ("x", "x", 0, 0, "one"),
        ("x#0.1", "x", 0, 1, "two"),
        ("x#1.0", "x", 1, 0, "one"),
        ("x#1.1", "x", 1, 1, "two"),
        ("y", "y", 0, 0, "z"),
        ("y#1.0", "y", 1, 0, "z"),
    ]
    assert [m["content"] for m in responses[1].messages] == ["s", "one", "one", "two"]
    assert run(raw, store)[0][ASKED] == 0
    last = job(model, path, "echo", task_type="conversation", turns="last")
    assert run(last, store)[1][0].text == "two"


def test_a_prompt_too_long_fails_that_row_and_nothing_else(model, tmp_path, store):
    rows = [{"id": "a", "question": "1 + 1"}, {"id": "long", "question": "1" * 500}]
    path = write(tmp_path / "t.jsonl", [*rows, {"id": "b", "question": "2 + 2"}])
    facts, responses = run(job(model, path, "transformers", max_tokens=5, max_model_len=64), store)
    assert facts["states"]["too_long"] == 1
    assert [r.state == "too_long" for r in responses] == [False, True, False]
    assert (
        run(job(model, path, "transformers", max_tokens=5, max_model_len=64), store)[0][ASKED] == 0
    )


def test_a_chat_that_the_template_refuses_fails_that_row_with_its_reason(tmp_path, store):
    strict = save_model(tmp_path / "strict")
    template = "{{ raise_exception('no system turns') if messages[0].role == 'system' }}"
    (strict / "chat_template.jinja").write_text(template + "<bos>{{ messages[-1].content }}")
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    rows = [{"id": "a", "messages": turns}, {"id": "b", "question": "1 + 1"}]
    path = write(tmp_path / "t.jsonl", rows)
    responses = run(job(strict, path, "transformers", max_tokens=3, max_model_len=64), store)[1]
    assert responses[0].state == "failed"
    assert "no system turns" in responses[0].cause
    assert responses[1].state in ("accepted", "truncated")


def lengths(path: Path, num_long: int) -> Path:
    """Twenty questions, of which the echo of so many among the first sixteen is cut off at 20."""
    texts = ["a long question, far beyond twenty" if i < num_long else "short" for i in range(20)]
    rows = [{"question": f"{text} {i}?", "answer": "1"} for i, text in enumerate(texts)]
    return write(path, rows)


def test_the_pilot_stops_where_the_required_ratio_is_implausible(model, store, tmp_path):
    rows = lengths(tmp_path / "train.jsonl", 9)
    raw = job(model, rows, "echo", max_tokens=20, min_success_ratio=0.7)
    raw["curate"]["filters"] = ["finished", "non_empty"]
    with pytest.raises(StageError) as stopped:
        run(raw, store)
    message = str(stopped.value)
    assert "9 of the first 16 answers are unusable" in message
    assert "raise generate.max_tokens from 20; 90% of the answers would end within" in message
    assert message.count("(truncated): a long question") == 3
    assert len(segments(store)) == 16
    raw["generate"]["spending"] = {"pilot_rows": 0}
    with pytest.raises(StageError, match="11 of 20 responses are accepted"):
        run(raw, store)
    assert len(segments(store)) == 20


def test_the_pilot_goes_on_where_the_required_ratio_is_plausible(model, store, tmp_path):
    rows = lengths(tmp_path / "train.jsonl", 6)
    raw = job(model, rows, "echo", max_tokens=20, min_success_ratio=0.7)
    raw["curate"]["filters"] = ["finished", "non_empty"]
    events: list[dict] = []
    facts, _ = run(raw, store, Reporter(events.append))
    assert facts["states"] == {"truncated": 6, "accepted": 14}
    notes = [event["text"] for event in events if event["kind"] == "note"]
    assert any("pilot: 6 of the first 16 answers are unusable: truncated" in n for n in notes)


def test_the_forecast_follows_from_the_pilot_and_the_prices(model, rows, store):
    prices = {"price_per_million_input_tokens": 1e6, "price_per_million_output_tokens": 2e6}
    said = []
    facts, responses = run(
        job(model, rows, "echo", spending={"pilot_rows": 10, **prices}),
        store,
        Reporter(said.append),
    )
    first = sum(r.num_tokens for r in responses[:10])
    assert facts["forecast"]["output_tokens"] == first * 3
    assert facts["forecast"]["cost"] == pytest.approx(first * 3 * 3)
    spent = sum(r.num_prompt_tokens + 2 * r.num_tokens for r in responses)
    assert facts["spending"]["cost"] == pytest.approx(spent)
    assert any("forecast for 30 responses" in event.get("text", "") for event in said)


@pytest.mark.parametrize("limit", ["max_tokens_total", "max_cost"])
def test_a_budget_is_never_broken_and_a_higher_one_goes_on(model, rows, store, limit):
    # echo's tokens are bytes, and each counts in the prompt and in the answer
    prices = {"price_per_million_input_tokens": 1e6, "price_per_million_output_tokens": 1e6}
    spending = {"pilot_rows": 0, limit: 600, **prices}
    raw = job(model, rows, "echo", max_tokens=20, spending=spending)
    with pytest.raises(StageError, match=f"stopped by generate.spending.{limit}: 600"):
        run(raw, store)
    done = segments(store)
    spent = sum(2 * len(entry["raw"]["token_ids"]) for entry in done)
    assert 0 < len(done) < 30
    assert spent <= 600
    spending[limit] = 10_000
    facts, _ = run(raw, store)
    assert facts[ASKED] == 30 - len(done)
    assert facts["spending"]["input_tokens"] + facts["spending"]["output_tokens"] > spent


def test_too_few_accepted_responses_fail_the_stage_with_their_states(model, rows, store):
    raw = job(model, rows, "echo", max_tokens=10, min_success_ratio=0.9)
    with pytest.raises(StageError, match=r"min_success_ratio=0.9 asks for \(\d+ truncated\)"):
        run(raw, store)
    assert len(segments(store)) == 30


def test_rows_are_asked_again_by_their_state(model, rows, store):
    run(job(model, rows, "echo", max_tokens=10), store)
    states = Counter(r.state for r in run(job(model, rows, "echo", max_tokens=10), store)[1])
    raw = job(model, rows, "echo", max_tokens=10, runtime={**RUNTIME, "retry": ["truncated"]})
    assert run(raw, store)[0][ASKED] == states["truncated"] > 0


def test_a_cut_answer_that_is_retried_without_a_higher_limit_is_asked_anew(model, rows, store):
    runtime = {**RUNTIME, "parity_samples": 0}
    knobs = {"max_tokens": 6, "max_model_len": 64, "top_k": 3, "runtime": runtime}
    _, before = run(job(model, rows, "transformers", **knobs), store)
    knobs["runtime"] = {**runtime, "retry": ["truncated"]}
    raw = job(model, rows, "transformers", **knobs)
    facts, responses = run(raw, store)
    assert facts[ASKED] == sum(r.state == "truncated" for r in before) > 0
    signals = read_signals(stage_of("generate", raw, store, {}).out)
    assert all(signals[r.id].target_ids_T.tolist() == r.token_ids for r in responses)


def test_score_mode_gives_the_signal_of_answers_that_exist(model, tmp_path, store):
    rows = [
        {"id": str(n), "question": f"{n} + 1 = ?", "answer": f"it is {n + 1}"} for n in range(9)
    ]
    path = write(tmp_path / "t.jsonl", rows)
    facts, responses = run(job(model, path, "transformers", mode="score", top_k=4), store)
    assert [r.text for r in responses] == [row["answer"] for row in rows]
    assert facts["states"] == {"accepted": 9}
    assert facts["parity"]["kl_nats"] < 5e-3
    path = write(tmp_path / "t.jsonl", [*rows, {"id": "none", "question": "?"}])
    with pytest.raises(DataError, match="example none has no answer of its own"):
        run(job(model, path, "transformers", mode="score", top_k=4), store)


def test_parity_notices_a_signal_of_another_model(model, rows, tmp_path, store):
    raw = job(model, rows, "transformers", max_tokens=6, max_model_len=64, top_k=4)
    facts, _ = run(raw, store)
    assert facts["parity"]["kl_nats"] < 5e-3
    inputs = {"prepare": stage_of("prepare", raw, store, {}).out.finished()}
    arguments = stage_of("generate", raw, store, inputs).arguments()
    arguments["spec"]["generate"]["teacher"] = str(save_model(tmp_path / "other", seed=9))
    with pytest.raises(StageError, match="nats of KL from a plain forward pass"):
        parity(arguments, "float32", SILENT)
