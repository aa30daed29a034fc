"""Graders of OpenAI's Evals as metrics of the stage: scores, who is asked, what decides."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from retort import processes
from retort.errors import SpecError, StageError
from retort.events import SILENT
from retort.plugins import FOLDER
from retort.processes import forks
from retort.spec import build
from retort.stages.evaluate import check as evaluate_check
from retort.stages.evaluate import evaluate, grading
from retort.stages.prepare import check as prepare_check
from retort.stages.stage import Stage
from tests.stages.test_evaluate import ROLES, folder, job, stage
from tests.support.child_functions import double
from tests.support.misbehaving import SECRET, bad, endpoint, openai_body

__all__ = ["folder"]
OUTPUT = "{{sample.output_text}}"
# The engine echo repeats what it is asked, and so does the judge, whose last result then counts.
REPEATS = {"type": "string_check", "name": "Repeats", "operation": "eq"}
REPEATS |= {"input": OUTPUT, "reference": "{{item.input}}"}
SEVEN = {**REPEATS, "name": "Right", "operation": "like", "reference": "{{item.expected}}"}
POINTS = {"type": "score_model", "name": "Points", "model": "o3", "range": [1, 7]}
POINTS |= {"pass_threshold": 4, "input": [{"role": "user", "content": f'"result": {OUTPUT}'}]}
LENGTH = {"type": "python", "name": "Length", "pass_threshold": 9.5}
LENGTH["source"] = "def grade(sample, item):\n    return len(sample['output_text'])"
KEYS = {**LENGTH, "name": "Keys", "source": "import os\ngrade = lambda s, i: len(s) / 'PATH' in os"}
BOTH = {"type": "multi", "name": "Both", "calculate_output": "min(says, 0.5) + long / 100"}
REPLY = [{"message": {"role": "assistant", "content": '{"result": 5}'}, "finish_reason": "stop"}]
BOTH["graders"] = {"says": REPEATS, "long": LENGTH}


def graded(folder: Path, tmp_path: Path, graders: list[Any], **knobs: Any) -> dict[str, Any]:
    path = tmp_path / "graders.json"
    path.write_text(json.dumps({"testing_criteria": graders}))
    return {"rounds": 1, "graders": {"file": str(path), **knobs}}


@pytest.fixture(scope="module")
def answered(folder, tmp_path_factory) -> tuple[Stage, dict[str, Any]]:
    """A stage with graders of every kind, and its facts."""
    place = tmp_path_factory.mktemp("answered")
    judge = {"model": str(folder / "base"), "engine": "echo"}
    every = [REPEATS, SEVEN, POINTS, LENGTH, KEYS, BOTH]
    knobs = graded(folder, place, every, main="Points", judge=judge, python=True)
    asked = stage(folder, "echo", place / "out", **knobs)
    return asked, evaluate(asked)


def test_graders_are_metrics_with_intervals_and_differences_and_one_decides(answered):
    _, facts = answered
    assert facts["main_metric"] == "score.Points"
    for role in ROLES:
        found = facts["models"][role]["metrics"]
        assert next(iter(found)) == "score.Points"
        # 0 to 8, no less than 1 and no more than 7; the last answer names several numbers.
        assert found["score.Points"]["value"] == (1 + 1 + 2 + 3 + 4 + 5 + 6 + 7 + 7 + 1) / 10
        assert found["grader.Points.passed"]["value"] == 0.5
        assert found["grader.Repeats"] == found["grader.Repeats"] | {"value": 1.0, "n": 10}
        # Of the sums only that of 0 and 7 names its result, and one row has no answer of its own.
        assert found["grader.Right"] == found["grader.Right"] | {"value": 1 / 9, "n": 9}
        assert found["score.Length"]["value"] == (9 * 9 + 23) / 10
        assert found["grader.Length.passed"]["value"] == 0.1
        assert found["score.Keys"]["value"] == 0.0  # its code raises
        assert found["score.Both"]["value"] == pytest.approx(0.5 + 10.4 / 100)
        assert found["score.Points"]["low"] < found["score.Points"]["value"]
    gap = facts["differences"]["base"]["score.Points"]
    assert (gap["value"], gap["n"]) == (0.0, 10)
    assert facts["retention"]["score.Points"]["value"] == 1.0


def test_nothing_is_asked_again_and_what_scores_nothing_cannot_decide(answered, folder, tmp_path):
    asked, _ = answered
    said = [path.read_text() for path in (folder / "store/ledger").rglob("*.jsonl")]
    assert sum(text.count('{"key":') for text in said) == 10  # thirty answers, ten of them others
    by_role, num_unreached = grading.graded(asked)
    again = [path.read_text() for path in (folder / "store/ledger").rglob("*.jsonl")]
    assert again == said and num_unreached == 0
    stored = asked.out.read_json("statistics-base.json")
    assert by_role["base"].items() <= stored.items()
    lacks = {**REPEATS, "reference": "{{item.nothing}}"}
    knobs = graded(folder, tmp_path, [lacks], main="Repeats")
    other = stage(folder, "echo", Path(asked.out.uri), **knobs)
    with pytest.raises(StageError, match="'Repeats' scored no answer of teacher, base, student"):
        grading.deciding_first(other, {role: {} for role in grading.graded(other)[0]})


def test_a_judge_at_an_endpoint_has_a_budget_and_who_was_not_reached_is_counted(
    answered, folder, tmp_path, monkeypatch
):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    away = {"0 + 7", "1 + 7"}

    async def behave(seen, request, text):
        if any(sum_of in text for sum_of in away):
            return bad(503)
        return web.json_response({**openai_body(text), "choices": REPLY})

    with endpoint(behave) as (seen, url):

        def scored(**spending: int) -> tuple[dict[str, Any], int]:
            judge = {"model": "j", "engine": "openai", "endpoint": url, "max_tokens": 20}
            judge |= {"spending": spending, "runtime": {"max_attempts": 1}}
            knobs = graded(folder, tmp_path, [POINTS], judge=judge)
            by_role, num = grading.graded(stage(folder, "echo", Path(answered[0].out.uri), **knobs))
            return by_role["base"]["score.Points"], num

        with pytest.raises(
            StageError, match=r"evaluate\.graders\.judge\.spending\.max_tokens_total"
        ):
            scored(max_tokens_total=1_000)
        scores, num_unreached = scored(max_tokens_total=100_000)
        assert num_unreached == 2 and len(scores) == 8
        assert set(map(tuple, scores.values())) == {(5.0, 1.0)}
        away.clear()
        scores, num_unreached = scored(max_tokens_total=100_000)
        assert num_unreached == 0 and len(scores) == 10
        finished = [text for _, text in seen.seen]
        assert max(finished.count(text) for text in finished if "7 + 7" in text) == 1
    assert SECRET not in "".join(p.read_text() for p in (folder / "store/ledger").rglob("*.json*"))


def test_the_process_of_graders_code_starts_without_keys(answered, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    monkeypatch.setattr(forks, "_servers", {})
    for name in set(os.environ) - {*grading.VARIABLES}:
        if name.startswith(forks.READ_BY_IMPORTS):
            monkeypatch.delenv(name)
    allowed = {*grading.VARIABLES, "TMPDIR", "OMP_NUM_THREADS", FOLDER}
    lines = [
        "import os",
        "def grade(sample, item):",
        " names, at = {*os.environ}, '/proc/self/environ'",
    ]
    lines += [" if os.path.exists(at):"]  # a fork has there what its server began with
    lines += ["  names |= {each.split('=')[0] for each in open(at).read().split(chr(0)) if each}"]
    lines += [f" return 3 + len(names - {allowed})"]
    knobs = graded(folder, tmp_path, [{**LENGTH, "source": "\n".join(lines)}], python=True)
    asked = stage(folder, "echo", Path(answered[0].out.uri), **knobs)
    runtime = asked.spec.evaluate.runtime.model_dump(mode="json")
    # From now on there is a server that has the key.
    assert processes.run(double, {"value": 2}, SILENT, tmp_path / "log", runtime) == 4
    by_role, _ = grading.graded(asked)
    assert set(map(tuple, by_role["base"]["score.Length"].values())) == {(3.0, 1.0)}


def test_code_of_a_grader_is_stopped_and_what_it_does_wrong_scores_nothing(monkeypatch):
    item = {"n": 3, "seen": []}

    def called(source: str) -> float:
        call = {"source": source, "sample": {"output_text": "x"}, "item": item}
        scores = grading.call_all({"a": call, "b": call}, SILENT)
        assert scores["a"] == scores["b"]
        return scores["a"]

    monkeypatch.setattr(grading, "SECONDS_OF_A_CALL", 0.2)
    before = {number: signal.getsignal(number) for number in (signal.SIGALRM, signal.SIGTERM)}
    try:
        grows = "def grade(s, i):\n i['seen'].append(1)\n return len(i['seen'])"
        assert called(grows) == 1 and not item["seen"]
        assert called("def grade(sample, item): return item['n'] / 2") == 1.5
        endless = "while True:\n  try:\n   pass\n  except Exception:\n   pass"
        assert called(f"def grade(s, i):\n {endless.replace(chr(10), chr(10) + ' ')}") == 0
        assert called(f"def grade(s, i): return 1\n{endless}") == 0
        assert called("def grade(s, i): raise KeyboardInterrupt") == 0
        assert called("raise GeneratorExit") == 0
        with pytest.raises(grading.EndedError):
            called("import signal\ndef grade(s, i): signal.raise_signal(signal.SIGTERM)")
        for wrong in ("1 / 0", "'a'", "float('nan')", "exit()", "None"):
            assert called(f"def grade(s, i): return {wrong}") == 0
        assert called("no python") == called("x = 1") == 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_what_cannot_be_graded_is_said_before_a_run(folder, tmp_path):
    def checked(*graders: Any, columns: tuple[str, ...] = (), **knobs: Any) -> list[str]:
        raw = job(folder, "echo", **graded(folder, tmp_path, list(graders), **knobs))
        raw["prepare"]["keep_columns"] = columns
        spec = build(raw)
        return [*prepare_check.check(spec), *evaluate_check.check(spec)]

    judge = {"model": str(folder / "base"), "engine": "echo"}
    (line,) = [text for text in checked(REPEATS, main="Repeats") if "evaluate.graders" in text]
    assert line.endswith("graders.json: grader.Repeats, grader.Repeats decides")
    with pytest.raises(SpecError, match="'Length' is Python code, which a job runs only on req"):
        checked(BOTH)
    with pytest.raises(SpecError, match=r"'Points' asks a model \(o3\); name the one"):
        checked(POINTS)
    other = f"grader 'Points' names o3; {folder / 'base'} is asked"
    assert other in checked(POINTS, judge=judge)
    with pytest.raises(SpecError, match=r"no grader 'Repeat' .did you mean 'Repeats'"):
        checked(REPEATS, main="Repeat")
    named = {**REPEATS, "reference": "{{item.answer}}"}
    with pytest.raises(SpecError, match=r"'Repeats' names \{\{item.answer\}\}, which no row of pr"):
        checked(named)
    lines = checked(named, columns=("answer",))
    assert any("{{item.answer}}, which 1 of the first 10 rows" in text for text in lines)
