"""Evaluation: turns in fresh processes, answers that stand, and a judge that knows no names.

Where what counts is who is asked when, the engine is `echo`, and no model is loaded.
"""

import contextlib
import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import scipy.stats

from retort.engines import Answer, Request
from retort.errors import StageError
from retort.events import SILENT, Reporter
from retort.processes import forks, libraries
from retort.stages.evaluate import evaluate, load_test
from retort.stages.evaluate import turns as turn_taking
from retort.stages.evaluate.compared_models import model_of
from retort.stages.evaluate.measure import EvaluatedModel, measure
from retort.stages.prepare import prepare
from retort.stages.stage import Stage
from retort.store import Artifact, Folder, model_folder
from tests.support.stages import stage_of
from tests.support.tiny import save_model

ROLES = ("teacher", "base", "student")
RUNTIME = {"max_num_seqs": 4, "num_threads": 1, "device": "cpu"}


def job(folder: Path, engine: str, **evaluate: Any) -> dict[str, Any]:
    """A job of ten sums, the last without an answer of its own, and of the rows in `more.json`."""
    rows = [{"id": f"q{n}", "question": f"{n} + 7 = ?", "answer": f"{n + 7}"} for n in range(9)]
    rows.append({"id": "q9", "question": "What is 9 + 7? Score: 4"})
    if (more := folder / "more.json").is_file():
        rows += json.loads(more.read_text())
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "train.jsonl").write_text('{"id": "t", "question": "1 + 1 = ?", "answer": "2"}\n')
    return {
        "name": "sums",
        "prepare": {
            "task_type": "math",
            **{split: str(folder / f"{split}.jsonl") for split in ("train", "test")},
            "deduplicate": {"exact": False, "near": False},
            "decontaminate": {"enabled": False},
        },
        "generate": {
            "teacher": str(folder / "teacher"),
            "engine": "transformers",
            "max_tokens": 8 if engine == "transformers" else 40,
            "max_model_len": 64,
        },
        "train": {"student": str(folder / "base")},
        "evaluate": {
            "engine": engine,
            "latency_samples": 3,
            "num_bootstrap": 100,
            "runtime": RUNTIME,
            **evaluate,
        },
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What `made` makes."""
    return made(tmp_path_factory.mktemp("evaluate"))


def made(folder: Path) -> Path:
    """Models, prepared rows, and a student that some training left."""
    save_model(folder / "teacher", seed=1)
    save_model(folder / "base", hidden=32, layers=1, seed=2)
    first = stage_of("prepare", job(folder, "echo"), str(folder / "store"), {})
    first.out.commit({"facts": prepare(first)})
    train = Folder(str(folder / "store/artifacts/train/made"))
    train.put_tree(save_model(folder / "student", hidden=32, layers=1, seed=3), "student")
    train.commit({"facts": {"template_sha256": model_folder.template_sha256(folder / "student")}})
    return folder


def stage(folder: Path, engine: str, out: Path, heard: list[Any] | None = None, **knobs: Any):
    """A stage about to evaluate into a folder of its own; what it says is put into `heard`."""
    raw, store = job(folder, engine, **knobs), str(folder / "store")
    prepared = stage_of("prepare", raw, store, {}).out.finished()
    trained = Folder(f"{store}/artifacts/train/made").finished()
    found = stage_of("evaluate", raw, store, {"prepare": prepared, "train": trained})
    report = SILENT if heard is None else Reporter(heard.append)
    return replace(found, out=Folder(str(out)), report=report)


def turns(heard: list[Any]) -> list[str]:
    """Who was measured, in order."""
    notes = [event["note"] for event in heard if event["kind"] == "progress"]
    return [note.split()[0] for note in notes if note.endswith("loading")]


@pytest.fixture(scope="module")
def echoed(folder, tmp_path_factory) -> tuple[Stage, dict[str, Any], list[Any]]:
    heard: list[Any] = []
    asked = stage(folder, "echo", tmp_path_factory.mktemp("echoed"), heard)
    return asked, evaluate(asked), heard


def measures_of(asked: Stage) -> dict[str, list[dict[str, Any]]]:
    """What each model's turns measured, by role."""
    return {
        role: [asked.out.read_json(f"measures-{role}-{number}.json") for number in (1, 2)]
        for role in ROLES
    }


def process_ids(asked: Stage) -> list[int]:
    """The processes of each model's turns, round after round."""
    measured = measures_of(asked)
    return [measured[role][number]["process_id"] for number in (0, 1) for role in ROLES]


def test_the_models_take_turns_each_in_a_process_of_its_own(echoed):
    asked, facts, heard = echoed
    assert turns(heard) == [*ROLES]  # each is loaded once, and stays open
    first, again = process_ids(asked)[:3], process_ids(asked)[3:]
    assert first == again and len({*first, os.getpid()}) == 4
    files = [Path(asked.out.uri) / f"measures-{r}-{n}.json" for n in (1, 2) for r in ROLES]
    assert files == sorted(files, key=lambda file: file.stat().st_mtime_ns)
    assert all(not Path(f"/proc/{process_id}").exists() for process_id in first)
    for role in ROLES:
        found = facts["models"][role]
        assert found["num_rounds"] == 2 and found["num_changed"] == 0
        assert found["latency_seconds"]["n"] == 3
        timed = [asked.out.read_json(f"measures-{role}-{n}.json")["latencies"] for n in (1, 2)]
        quickest = np.minimum(*(each["whole"] for each in timed)).tolist()
        assert found["latencies"]["whole"] == quickest
        assert found["first_token_seconds"] is None  # what is repeated comes all at once
        loaded = [each.get("load_seconds") for each in measures_of(asked)[role]]
        assert loaded == [found["load_seconds"], None]
        assert found["peak_memory_bytes"] > 1e7 and found["peak_gpu_memory_bytes"] is None
    assert facts == asked.out.read_json("scores.json")


def test_where_memory_is_short_each_turn_has_a_process_of_its_own(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(turn_taking, "SPARE", 1e9)
    asked = stage(folder, "echo", tmp_path)
    facts = evaluate(asked)
    assert len(set(process_ids(asked))) == 6
    for role, loaded in measures_of(asked).items():
        seconds = sorted(each["load_seconds"] for each in loaded)
        assert seconds[0] <= facts["models"][role]["load_seconds"] <= seconds[1]


def test_load_time_counts_what_was_imported_once_for_all(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(libraries, "inherited_seconds", 1000.0)
    asked = stage(folder, "echo", tmp_path)
    with model_of(asked, "teacher") as model:
        measured = EvaluatedModel(asked, "teacher", model).measure(1)
    assert measured["load_seconds"] > 1000.0


def test_a_model_takes_the_memory_of_a_process_of_its_own(folder, tmp_path, monkeypatch):
    def taken(name: str) -> dict[str, Any]:
        asked = stage(folder, "transformers", tmp_path / name)
        with turn_taking.OpenModel(asked, "student") as model:
            return model.measure(1, asked.report)

    forked = taken("forked")
    monkeypatch.setattr(forks, "GPUS", ("/",))  # as where there is one: no process is a fork
    alone = taken("alone")
    assert forked["peak_memory_bytes"] == pytest.approx(alone["peak_memory_bytes"], rel=0.03)
    assert forked["load_seconds"] > 0.5  # of which the imports were made before


class CutError(Exception):
    """The run was cut off."""


def open_processes() -> list[psutil.Process]:
    """The processes of models that this one has open, the oldest first."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.ZombieProcess, psutil.NoSuchProcess):
            if "measure_turns" in " ".join(child.cmdline()):
                found.append(child)
    return sorted(found, key=lambda process: process.pid)


def test_a_run_that_is_cut_off_leaves_no_process_open(folder, tmp_path):
    seen = []

    def cut(event: dict[str, Any]) -> None:
        if event["kind"] == "progress" and event["note"].startswith("base "):
            seen.extend(open_processes())
            raise CutError

    asked = replace(stage(folder, "echo", tmp_path), report=Reporter(cut))
    with pytest.raises(CutError):
        evaluate(asked)
    assert len(seen) == 2 and open_processes() == []
    assert asked.out.has("measures-teacher-1.json")


def test_a_turn_that_fails_says_why_and_ends_the_others(folder, tmp_path):
    asked = stage(folder, "echo", tmp_path)
    other = Folder(str(tmp_path / "trained"))
    other.put_tree(folder / "student", "student")
    other.commit({"facts": {"template_sha256": "another"}})
    trained = Artifact("train", "made", other.uri, "digest")
    with pytest.raises(StageError, match="the student's chat template is not the one that it was"):
        evaluate(replace(asked, inputs={**asked.inputs, "train": trained}))
    assert open_processes() == []


def test_the_facts_tell_the_scores_with_intervals_differences_and_retention(echoed):
    asked, facts, heard = echoed
    assert facts["main_metric"] == "accuracy" and facts["num_examples"] == 10
    student = facts["models"]["student"]["metrics"]
    assert student["accuracy"]["n"] == 9 and student["agreement"]["value"] == 1.0
    assert {*facts["differences"]} == {"teacher", "base"}
    gap = facts["differences"]["base"]["agreement"]
    assert gap["value"] == 0.0 and gap["low"] <= 0 <= gap["high"]
    assert facts["retention"]["agreement"]["value"] == 1.0
    stored = asked.out.read_json("statistics-student.json")
    assert {*stored} == {*student} and len(stored["accuracy"]) == 9
    (told,) = (event["values"] for event in heard if event["kind"] == "metrics")
    assert told["student.agreement"] == 1.0 and told["difference.base_low"] <= 0
    assert told["student.accuracy_high"] == student["accuracy"]["high"]
    assert told["base.requests_per_second"] == facts["models"]["base"]["requests_per_second"]


def test_two_evaluations_of_the_same_models_give_identical_scores(echoed, folder, tmp_path):
    first, again = echoed[1], evaluate(stage(folder, "echo", tmp_path))
    for part in ("differences", "retention"):
        assert first[part] == again[part]
    for role in ROLES:
        assert first["models"][role]["metrics"] == again["models"][role]["metrics"]


def test_a_killed_run_continues_with_the_turns_that_are_missing(echoed, folder, tmp_path):
    before = Path(echoed[0].out.uri)
    shutil.copytree(before, tmp_path / "left")
    for name in ("measures-base-2.json", "measures-student-2.json", "scores.json"):
        (tmp_path / "left" / name).unlink()
    heard: list[Any] = []
    evaluate(stage(folder, "echo", tmp_path / "left", heard))
    assert turns(heard) == ["base", "student"]
    assert sum("continuing" in event.get("text", "") for event in heard) == 4
    for name in ("answers-base.jsonl", "measures-base-1.json", "measures-teacher-2.json"):
        assert (tmp_path / "left" / name).read_bytes() == (before / name).read_bytes()


def test_an_answer_that_changes_between_rounds_is_counted_and_the_first_is_scored(
    echoed, folder, tmp_path
):
    shutil.copytree(echoed[0].out.uri, tmp_path / "left")
    answers = tmp_path / "left/answers-base.jsonl"
    first, *rest = answers.read_text().splitlines()
    changed = json.dumps({**json.loads(first), "text": "something else"})
    answers.write_text("\n".join([changed, *rest]) + "\n")
    (tmp_path / "left/measures-base-2.json").unlink()
    heard: list[Any] = []
    facts = evaluate(stage(folder, "echo", tmp_path / "left", heard))
    assert facts["models"]["base"]["num_changed"] == 1
    assert any("base gave 1 other answers in round 2" in e.get("text", "") for e in heard)
    assert json.loads(answers.read_text().splitlines()[0])["text"] == "something else"
    assert facts["models"]["base"]["metrics"]["agreement"]["value"] == 0.9


def test_a_judge_rates_each_answer_once_and_is_not_told_whose_it_is(folder, tmp_path):
    knobs = {"judge": {"model": str(folder / "base"), "engine": "echo"}, "rounds": 1}
    asked = stage(folder, "echo", tmp_path / "out", **knobs)
    facts = evaluate(asked)
    # The judge repeats what it is asked; one question holds a score, which it then ends with.
    for role in ROLES:
        found = facts["models"][role]["metrics"]["judge"]
        assert (found["value"], found["n"]) == (4.0, 1)
        assert asked.out.read_json(f"statistics-{role}.json")["judge"] == {"q9": [4.0, 1.0]}
    assert facts["differences"]["base"]["judge"]["value"] == 0.0
    said = [path.read_text() for path in (folder / "store/ledger").rglob("*.jsonl")]
    assert sum(text.count('{"key":') for text in said) == 10  # thirty answers, ten of them others
    assert not any(word in text for text in said for word in ("student", "teacher", "base"))


def test_a_champion_is_measured_alone_and_compared_with_nobody_here(folder, tmp_path):
    released = Folder(str(tmp_path / "released"))
    released.put_tree(folder / "student", "model")
    champion = released.commit({})
    asked = stage(folder, "echo", tmp_path / "out", rounds=1)
    inputs = {"prepare": asked.inputs["prepare"], "champion": champion}
    facts = evaluate(replace(asked, inputs=inputs))
    assert [*facts["models"]] == ["champion"]
    assert facts["differences"] == {} and facts["retention"] == {}
    assert "agreement" not in facts["models"]["champion"]["metrics"]
    assert facts["latency_bound_seconds"] is None
    assert facts["models"]["champion"]["within_bound"] is None


@pytest.fixture(scope="module")
def answered(folder, tmp_path_factory) -> tuple[Stage, dict[str, Any]]:
    """What a teacher's first turn measures in this very process."""
    asked = stage(folder, "transformers", tmp_path_factory.mktemp("answered"), rounds=1)
    found = measure(asked.arguments(), "teacher", str(folder / "teacher"), 1, SILENT)
    asked.out.write_json("measures-teacher-1.json", found)
    return asked, found


def test_a_turn_measures_answers_latencies_and_load_of_a_real_model(answered):
    asked, found = answered
    whole, first = found["latencies"]["whole"], found["latencies"]["first_token"]
    assert len(whole) == len(first) == 3
    assert all(0 < early <= late for early, late in zip(first, whole, strict=True))
    assert found["num_tokens"] <= 80 and found["num_prompt_tokens"] > 100
    ratio = found["tokens_per_second"] / found["requests_per_second"]
    assert ratio == pytest.approx(found["num_tokens"] / 10)
    levels = found["levels"]
    assert levels[0]["requests_per_second"] == pytest.approx(1 / np.mean(whole))
    assert levels[0]["p95_seconds"] == pytest.approx(np.quantile(whole, 0.95))
    bound = 2 * np.quantile(whole, 0.95)
    fitting = [v["requests_per_second"] for v in levels if v["p95_seconds"] <= bound]
    best = found["within_bound"]  # none where the machine was busy
    assert (best and best["requests_per_second"]) == max(fitting, default=None)
    assert best is None or best["p95_seconds"] <= bound
    assert len(asked.out.read("answers-teacher.jsonl").splitlines()) == 10
    assert found["parameters"] > 0 and found["peak_memory_bytes"] > 1e8


def test_a_student_is_held_to_the_bound_that_the_teacher_set(answered, folder):
    asked, teachers = answered
    found = measure(asked.arguments(), "base", str(folder / "base"), 1, SILENT)
    bound = 2 * np.quantile(teachers["latencies"]["whole"], 0.95)
    fitting = [v["requests_per_second"] for v in found["levels"] if v["p95_seconds"] <= bound]
    best = found["within_bound"]
    assert (best and best["requests_per_second"]) == max(fitting, default=None)
    asked.out.write_json("measures-base-1.json", found)
    later = measure(asked.arguments(), "base", str(folder / "base"), 2, SILENT)
    assert later["num_changed"] == 0 and "levels" not in later


def test_perplexity_and_kl_are_metrics_beside_those_of_the_texts(answered, folder):
    asked, _ = answered
    for role in ("base", "student"):
        found = measure(asked.arguments(), role, str(folder / role), 1, SILENT)
        asked.out.write_json(f"measures-{role}-1.json", found)
    facts = evaluate(asked)
    assert facts["perplexity_of"] == "teacher" and facts["notes"] == []
    metrics = {role: facts["models"][role]["metrics"] for role in ROLES}
    measured = asked.out.read_json("likelihood.json")["statistics"]
    for role in ROLES:
        nats, tokens = np.sum([*measured[role]["perplexity"].values()], axis=0)
        assert metrics[role]["perplexity"]["value"] == pytest.approx(np.exp(nats / tokens))
        assert metrics[role]["perplexity"]["low"] < metrics[role]["perplexity"]["high"]
    assert "kl_to_teacher" not in metrics["teacher"]
    nats, tokens = np.sum([*measured["base"]["kl_to_teacher"].values()], axis=0)
    assert metrics["base"]["kl_to_teacher"]["value"] == pytest.approx(nats / tokens)
    assert {"perplexity", "kl_to_teacher"} <= {*facts["differences"]["base"]}
    assert "kl_to_teacher" not in facts["differences"]["teacher"]
    first = facts["models"]["student"]["first_token_seconds"]
    assert first["low"] <= first["p50"] <= first["high"] and first["n"] == 3
    assert facts["latency_bound_seconds"] == pytest.approx(
        2 * facts["models"]["teacher"]["latency_seconds"]["p95"]
    )


class Watched:
    """An engine that answers the latest first, and notes how many requests are under way."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def generate(self, requests):
        waiting, ended, source = [], False, iter(requests)
        while waiting or not ended:
            while not ended and (request := next(source, source)) is not None:
                if request is source:
                    ended = True
                else:
                    waiting.append(request)
            self.seen.append(len(waiting))
            if waiting:
                yield Answer(waiting.pop().id, {})

    def forget(self) -> None:
        """Nothing is kept."""


def silent(note: str) -> None:
    """Progress that nobody hears."""


REQUESTS = [Request(f"r{n}", [{"role": "user", "content": str(n)}]) for n in range(5)]


@pytest.mark.parametrize("concurrency", [1, 4, 7])
def test_a_level_keeps_as_many_requests_under_way_as_it_says(concurrency, monkeypatch):
    engine = Watched()
    monkeypatch.setattr(load_test, "LEVEL_SECONDS", 0.0)
    level = load_test.closed_loop(engine, REQUESTS, concurrency, silent)
    assert level.num_requests == load_test.LEVEL_ROUNDS * concurrency
    assert set(engine.seen[: level.num_requests]) == {concurrency}
    assert max(engine.seen) == concurrency
    assert level.requests_per_second > 0 and level.p95_seconds >= 0


def test_load_rises_until_the_bound_is_passed_and_the_best_within_it_counts(monkeypatch):
    monkeypatch.setattr(load_test, "LEVEL_SECONDS", 0.0)

    def rates(whole: list[float], bound: float, most: int, **more: float) -> tuple[list, Any]:
        limits = load_test.Limits(bound, most, **more)
        levels, cut = load_test.rates(Watched(), REQUESTS, whole, limits, silent)
        return levels, ([level.concurrency for level in levels], cut)

    free, found = rates([0.1, 0.3], float("inf"), 20)
    assert found == ([1, 4, 16, 20], None)
    assert free[0] == load_test.Level(1, 5.0, pytest.approx(0.29), 2)
    assert rates([0.1], 0.05, 20)[1] == ([1], None)
    assert rates([1e-9], 1e-8, 64)[1] == ([1, 2, 4], None)
    # At two answers a second, eight seconds have room for a level of 4, and not for one of 16.
    soon = {"deadline": time.monotonic() + 8, "requests_per_second": 2.0}
    assert rates([0.1], float("inf"), 20, **soon)[1] == ([1, 4], 16)
    levels = [load_test.Level(c, r, p, 9) for c, r, p in ((1, 9, 0.1), (4, 20, 0.2), (16, 50, 0.4))]
    assert load_test.within(levels, 0.3) == levels[1]
    assert load_test.within(levels, 0.05) is None


def test_intervals_of_latency_are_those_of_scipys_percentile_bootstrap():
    samples = np.random.default_rng(1).lognormal(size=80)
    found = load_test.summary(samples.tolist(), 5000, seed=0)
    assert found.p50 == pytest.approx(np.median(samples))
    assert found.p95 == pytest.approx(np.quantile(samples, 0.95)) and found.n == 80
    for names, quantile in ((("low", "high"), 0.5), (("p95_low", "p95_high"), 0.95)):
        wanted = scipy.stats.bootstrap(
            (samples,),
            lambda x, axis, q=quantile: np.quantile(x, q, axis=axis),
            n_resamples=5000,
            method="percentile",
            random_state=2,
        ).confidence_interval
        assert [getattr(found, name) for name in names] == pytest.approx([*wanted], rel=0.05)
    assert load_test.summary([], 100, 0) is None
