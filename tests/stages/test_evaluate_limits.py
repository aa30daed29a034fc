"""Prompts that a model cannot take count for nothing, and measuring its speed ends in time."""

import json
from pathlib import Path

import pytest

from retort.errors import StageError
from retort.events import SILENT
from retort.jobs.source_digests import source_digests
from retort.spec import build, recipes
from retort.stages.evaluate import evaluate
from retort.stages.evaluate import measure as measure_module
from retort.stages.evaluate.measure import budget_seconds, measure
from retort.stages.stage import Stage
from retort.store import Artifact, Folder
from tests.stages.test_evaluate import ROLES, job, made, stage

# One token a character, and a model takes 64: 18 prompts, of which 8 are too long.
NUM_LONG, NUM_SHORT = 8, 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("limits")
    long = [
        {"id": f"long{n}", "question": f"{'so ' * 30}what is {n} + 1?", "answer": f"{n + 1}"}
        for n in range(NUM_LONG)
    ]
    (folder / "more.json").write_text(json.dumps(long))
    return made(folder)


def measured(folder: Path, out: Path, heard=None, rounds: int = 1, **knobs) -> Stage:
    """A stage whose turns were all measured, by small real models in this process."""
    asked = stage(folder, "transformers", out, heard, rounds=rounds, likelihood=False, **knobs)
    for number in range(1, rounds + 1):
        for role in ROLES:
            turn = measure(asked.arguments(), role, str(folder / role), number, asked.report)
            asked.out.write_json(f"measures-{role}-{number}.json", turn)
    return asked


def test_prompts_that_do_not_fit_are_counted_apart_and_never_scored_or_timed(folder, tmp_path):
    heard = []
    asked = measured(folder, tmp_path, heard, latency_samples=12)
    facts = evaluate(asked)
    assert (facts["num_examples"], facts["num_held_out"]) == (NUM_SHORT, NUM_SHORT + NUM_LONG)
    lines = [json.loads(line) for line in asked.out.read("answers-base.jsonl").splitlines()]
    states = {line["id"]: line["state"] for line in lines}
    assert sorted(states.values()).count("too_long") == NUM_LONG
    for role in ROLES:
        model = facts["models"][role]
        assert (model["num_unanswered"], model["unanswered"]) == (NUM_LONG, {"too_long": NUM_LONG})
        # q9 has no answer to compare with.
        assert model["metrics"]["accuracy"]["n"] == NUM_SHORT - 1
        assert model["metrics"]["agreement"]["n"] == NUM_SHORT
        assert model["latency_seconds"]["n"] == NUM_SHORT
        own = [r for r in map(json.loads, asked.out.read(f"answers-{role}.jsonl").splitlines())]
        short = [r for r in own if r["state"] != "too_long"]
        assert model["num_tokens"] == sum(r["num_tokens"] for r in short)
        assert model["num_prompt_tokens"] == sum(r["num_prompt_tokens"] for r in short)
        per_request = model["tokens_per_second"] / model["requests_per_second"]
        assert per_request == pytest.approx(model["num_tokens"] / NUM_SHORT)
    assert facts["retention"]["agreement"]["n"] == NUM_SHORT
    warned = [note for note in facts["notes"] if "unanswered" in note]
    assert len(warned) == 3 and "student: 8 of 18 held-out prompts are unanswered" in warned[2]
    assert all("8 longer than max_model_len 64" in note for note in warned)
    assert all("on the 10 prompts that every model answered" in note for note in warned)
    assert {f"warning: {note}" for note in warned} <= {e.get("text") for e in heard}


def test_a_prompt_that_one_model_cannot_take_counts_for_none(folder, tmp_path):
    asked = measured(folder, tmp_path)
    file = tmp_path / "answers-student.jsonl"
    first, *rest = (json.loads(line) for line in file.read_text().splitlines())
    refused = {**first, "text": "", "token_ids": [], "num_tokens": 0, "state": "failed"}
    file.write_text("".join(json.dumps(line) + "\n" for line in [refused, *rest]))
    facts = evaluate(asked)
    assert facts["models"]["student"]["unanswered"] == {"failed": 1, "too_long": NUM_LONG}
    assert facts["models"]["teacher"]["unanswered"] == {"too_long": NUM_LONG}
    assert facts["num_examples"] == NUM_SHORT - 1
    counted = {facts["models"][role]["metrics"]["agreement"]["n"] for role in ROLES}
    assert counted == {NUM_SHORT - 1}
    assert any("(1 refused or failed, 8 longer" in note for note in facts["notes"])


def test_a_model_that_takes_no_prompt_at_all_is_an_error_that_names_the_knob(folder, tmp_path):
    asked = stage(folder, "transformers", tmp_path, max_model_len=4)
    with pytest.raises(StageError, match=r"none of the 18 .*\(prompt_too_long\); raise eval"):
        measure(asked.arguments(), "base", str(folder / "base"), 1, SILENT)


def test_a_short_budget_cuts_latency_rate_and_load_and_says_so(folder, tmp_path):
    heard = []
    # A bound that no answer exceeds, because the load ends at the first level beyond it.
    knobs = {"latency_samples": 9, "speed_seconds": 1e-6, "latency_bound_seconds": 600.0}
    facts = evaluate(measured(folder, tmp_path, heard, rounds=2, **knobs))
    assert facts["speed_budget_seconds"] == 1e-6
    for role in ROLES:
        model = facts["models"][role]
        assert model["cut_short"] == [
            "round 1: latency: 4 of 9 requests",
            "round 1: load: no level of 4 requests at once",
            "round 2: rate: 8 of 10 requests",
            "round 2: latency: 4 of 9 requests",
        ]
        assert [level["concurrency"] for level in model["levels"]] == [1]
        assert model["latency_seconds"]["n"] == 4
        # What is scored is never cut.
        assert model["metrics"]["agreement"]["n"] == NUM_SHORT
    last = [event["text"] for event in heard if event["kind"] == "note"][-1]
    accuracy = facts["models"]["teacher"]["metrics"]["accuracy"]["value"]
    assert last.startswith(f"accuracy on 10 test examples: teacher {accuracy:.1%}, base ")
    assert last.endswith("; speed cut short at 0 s a model")


def test_with_time_enough_nothing_is_cut_and_each_part_reports_progress(
    folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(measure_module, "TELL_SECONDS", 0.0)
    heard = []
    facts = evaluate(measured(folder, tmp_path, heard, speed_seconds=600))
    assert all(model["cut_short"] == [] for model in facts["models"].values())
    last = [event["text"] for event in heard if event["kind"] == "note"][-1]
    assert last.startswith("accuracy on 10 test examples: teacher ") and "cut" not in last
    notes = [event["note"] for event in heard if event["kind"] == "progress"]
    assert "latency, 3 of 3 requests" in notes and "load, 4 requests at once" in notes


def test_the_budget_is_a_third_of_generates_time_but_thirty_seconds_at_least(folder, tmp_path):
    asked, store = stage(folder, "transformers", tmp_path), Folder(str(tmp_path / "store"))

    def budget(generate_seconds: float | None, **knobs) -> float:
        given = stage(folder, "transformers", tmp_path, **knobs)
        trained = Folder(f"{store.uri}/train-{generate_seconds}")
        recipe = {} if generate_seconds is None else {"inputs": {"generate": "asked"}}
        trained.commit({"ingredients": recipe, "facts": {}})
        if generate_seconds is not None:
            made = given.store.artifact("generate", "asked")
            made.clear()
            made.commit({"seconds": generate_seconds, "facts": {}})
        inputs = {**given.inputs, "train": Artifact("train", "made", trained.uri, "digest")}
        return budget_seconds(Stage(**{**vars(given), "inputs": inputs}))

    assert budget_seconds(asked) == 30
    assert budget(None) == 30 and budget(60.0) == 30
    assert budget(900.0) == 300
    assert budget(900.0, speed_seconds=12.5) == 12.5


def test_a_knob_that_was_added_later_names_an_artifact_only_once_it_is_set(folder):
    def name(**knobs) -> str:
        spec = build(job(folder, "transformers", **knobs))
        return recipes(spec, source_digests(spec))["evaluate"].name

    plain = build(job(folder, "transformers"))
    assert (
        "speed_seconds"
        not in recipes(plain, source_digests(plain))["evaluate"].ingredients["knobs"]
    )
    assert name() == name(speed_seconds=None)
    assert len({name(), name(speed_seconds=40), name(speed_seconds=41)}) == 3
