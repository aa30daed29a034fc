"""Batches: every answer finds its request, and nothing is ever submitted twice."""

import json
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from retort.engines import find_engine
from retort.engines._batch import BatchEngine
from retort.errors import SpecError, StageError
from tests.conftest import ROOT, environment
from tests.support.misbehaving import SECRET, asking, running, settings
from tests.support.providers import PROVIDERS

pytestmark = pytest.mark.parametrize("name", list(PROVIDERS))


@pytest.fixture(autouse=True)
def _key(monkeypatch, name):
    monkeypatch.setenv(f"{name.upper()}_API_KEY", SECRET)


def opened(name, url, state, **runtime):
    return find_engine(name).open_engine(settings(url, str(state), batch=True, **runtime))


def answers(name, url, state, requests, **runtime):
    """All answers as responses, by id; each request is answered exactly once."""
    found = list(opened(name, url, state, **runtime).generate(requests))
    assert len({a.id for a in found}) == len(found)
    return {a.id: find_engine(name).parse(a.id, a.raw) for a in found}


def intents(state):
    return [json.loads(path.read_text()) for path in state.glob("batches/*.json")]


def test_shuffled_results_find_their_requests_and_strangers_are_ignored(name, tmp_path):
    provider, texts = PROVIDERS[name](), [f"row {n}: straße" for n in range(50)]
    provider.extra = ["nobody-0"]
    with running(provider.app()) as url:
        found = answers(name, url, tmp_path, asking(*texts))
    assert {key: r.text for key, r in found.items()} == {text: f"to {text}" for text in texts}
    assert {r.state for r in found.values()} == {"accepted"}
    assert len(provider.batches) == 1
    assert [intent["status"] for intent in intents(tmp_path)] == ["done"]
    assert SECRET not in "".join(path.read_text() for path in tmp_path.rglob("*.json"))


@pytest.mark.parametrize("fate", ["missing", "expired", "crash"])
def test_rows_without_a_result_are_asked_in_a_further_batch(name, fate, tmp_path):
    def once(text, number):
        return fate if text in ("a", "b") and number == 0 else "fine"

    provider = PROVIDERS[name](once)
    with running(provider.app()) as url:
        found = answers(name, url, tmp_path, asking("a", "b", "c"))
    assert {r.text for r in found.values()} == {"to a", "to b", "to c"}
    assert len(provider.batches) == 2


@pytest.mark.parametrize("fate", ["missing", "expired", "crash"])
def test_rows_that_never_get_a_result_fail_after_as_many_batches(name, fate, tmp_path):
    provider = PROVIDERS[name](lambda text, number: fate if text == "a" else "fine")
    with running(provider.app()) as url:
        found = answers(name, url, tmp_path, asking("a", "b"), max_attempts=2)
    assert (found["a"].state, found["b"].state) == ("failed", "accepted")
    assert found["a"].cause
    assert len(provider.batches) == 2


def test_a_row_that_the_provider_refuses_fails_alone_and_is_not_asked_again(name, tmp_path):
    provider = PROVIDERS[name](lambda text, number: "bad" if text == "a" else "fine")
    with running(provider.app()) as url:
        found = answers(name, url, tmp_path, asking("a", "b"))
    assert found["a"].cause == "http_400: bad a"
    assert found["b"].state == "accepted"
    assert len(provider.batches) == 1


def test_a_batch_is_never_larger_than_the_provider_takes(name, tmp_path):
    module, provider = find_engine(name), PROVIDERS[name]()
    smaller = replace(module.BATCHES, max_requests=4)
    with running(provider.app()) as url:
        engine = BatchEngine(settings(url, str(tmp_path), batch=True), module.API, smaller)
        found = list(engine.generate(asking(*map(str, range(10)))))
    assert len(found) == 10
    assert len(provider.batches) == 3


def test_turns_that_follow_an_answer_form_the_next_batch(name, tmp_path):
    def turns():
        for turn in range(2):
            yield from asking(f"a{turn}", f"b{turn}")
            yield None

    provider = PROVIDERS[name]()
    with running(provider.app()) as url:
        found = answers(name, url, tmp_path, turns())
    assert sorted(found) == ["a0", "a1", "b0", "b1"]
    assert len(provider.batches) == 2


def test_a_client_killed_before_it_knew_of_its_batch_finds_it_again(name, tmp_path):
    provider = PROVIDERS[name]()
    provider.silence_seconds = 60.0
    with running(provider.app()) as url:
        client = subprocess.Popen(
            [sys.executable, "-m", "tests.support.providers", name, url, str(tmp_path)],
            env=environment(),
            cwd=ROOT,
        )
        for _ in range(600):
            if provider.batches:
                break
            time.sleep(0.05)
        client.kill()
        client.wait()
        (intent,) = intents(tmp_path)
        assert (intent["status"], intent["batch_id"]) == ("intended", None)
        assert sorted(intent["custom_ids"].values()) == ["one", "three", "two"]
        provider.silence_seconds = 0.0
        found = answers(name, url, tmp_path, asking("one", "two", "three"))
    assert {r.text for r in found.values()} == {"to one", "to two", "to three"}
    assert len(provider.batches) == 1


def test_an_order_that_was_taken_but_answered_with_an_error_is_not_placed_again(name, tmp_path):
    provider = PROVIDERS[name]()
    provider.refuse = 500
    with running(provider.app()) as url:
        found = answers(name, url, tmp_path, asking("a", "b"))
    assert len(found) == 2
    assert len(provider.batches) == 1


def test_an_intent_that_never_reached_the_provider_is_submitted_and_others_batches_are_not_taken(
    name, tmp_path
):
    provider = PROVIDERS[name]()
    with running(provider.app()) as url:
        answers(name, url, tmp_path / "theirs", asking("one", "two"))
        answers(name, url, tmp_path / "ours", asking("one", "two"))
        assert len(provider.batches) == 2
        (path,) = (tmp_path / "ours/batches").glob("*.json")
        lost = json.loads(path.read_text().replace(path.stem, "never"))
        path.with_name("never.json").write_text(
            json.dumps(lost | {"status": "intended", "batch_id": None})
        )
        path.unlink()
        found = answers(name, url, tmp_path / "ours", asking("one", "two"))
    assert {r.text for r in found.values()} == {"to one", "to two"}
    assert len(provider.batches) == 3
    assert [intent["status"] for intent in intents(tmp_path / "ours")] == ["done"]


def test_answers_that_were_taken_but_not_kept_are_read_again_and_not_paid_again(name, tmp_path):
    provider = PROVIDERS[name]()
    with running(provider.app()) as url:
        half = opened(name, url, tmp_path).generate(asking("a", "b", "c"))
        kept = next(half).id
        half.close()
        assert [intent["status"] for intent in intents(tmp_path)] == ["submitted"]
        missing = {"a", "b", "c"} - {kept}
        assert set(answers(name, url, tmp_path, asking(*missing))) == missing
        assert set(answers(name, url, tmp_path, asking("a"))) == {"a"}
        assert len(provider.batches) == 1
        assert set(answers(name, url, tmp_path, asking("a", "new"))) == {"a", "new"}
        assert len(provider.batches) == 2


def test_what_cannot_work_is_said_at_once(name, tmp_path):
    with pytest.raises(SpecError, match="state"):
        find_engine(name).open_engine(settings("http://host/v1", None, batch=True))
    with running(PROVIDERS[name]().app()) as url, pytest.raises(StageError, match="http_404"):
        answers(name, f"{url}/nowhere", tmp_path, asking("a"))


def test_only_the_very_same_question_is_answered_by_an_earlier_batch(name, tmp_path):
    provider, (request,) = PROVIDERS[name](), asking("a")
    with running(provider.app()) as url:
        engine = opened(name, url, tmp_path)
        for max_tokens in (4, 8, 4):
            (answer,) = engine.generate([replace(request, max_tokens=max_tokens)])
            assert answer.id == "a"
    assert len(provider.batches) == 2


def test_new_requests_do_not_wait_for_an_earlier_batch(name, tmp_path):
    provider = PROVIDERS[name]()
    with running(provider.app()) as url:
        answers(name, url, tmp_path, asking("a"))
        order = opened(name, url, tmp_path).generate(asking("a", "new"))
        next(order)
        assert len(provider.batches) == 2
        assert len(list(order)) == 1


def test_a_batch_that_the_provider_forgot_is_asked_anew(name, tmp_path):
    provider = PROVIDERS[name]()
    with running(provider.app()) as url:
        answers(name, url, tmp_path, asking("a"))
        provider.batches.clear()
        found = answers(name, url, tmp_path, asking("a"))
    assert found["a"].state == "accepted"
    assert len(provider.batches) == 1


def test_a_field_that_a_model_knows_by_another_name_gets_it_in_the_next_batch(name, tmp_path):
    text = "use max_completion_tokens instead of max_tokens"
    provider = PROVIDERS[name](lambda text, number: "fine" if number else "bad")
    with running(provider.app()) as url:
        found = answers(name, url, tmp_path, asking(text))
    assert found[text].state == ("accepted" if name == "openai" else "failed")
    assert len(provider.batches) == (2 if name == "openai" else 1)
