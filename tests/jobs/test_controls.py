"""Controls: trained as the student is, by plain fine-tuning, and compared with it honestly.

Here the teacher is random and every row's own answer is 7, so that the control gold must win. What
a stage's child process would do is done in this one.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from flows.commands.terminal import print_report
from retort.errors import SpecError
from retort.events import SILENT
from retort.jobs.preflight import check
from retort.jobs.run import JobRun
from retort.metrics.comparison import compare, read_content, verdict, warnings
from retort.metrics.comparison.shapes import (
    Difference,
    Estimate,
    Evaluated,
    GateOutcome,
    MeasuredModel,
)
from retort.spec import build, load, recipes, training_of
from retort.stages.evaluate import evaluate
from retort.stages.evaluate.measure import measure
from retort.stages.report import report
from retort.stages.stage import Stage
from retort.stages.train.loop import fit
from retort.store import Artifact, Folder, open_store
from tests.support.tiny import write_job
from tests.support.training import made

DISTIL = [{"name": "cross_entropy", "weight": 0.2}, {"name": "forward_kl", "weight": 0.8}]
PLAIN = [{"name": "cross_entropy"}]
BOTH = ["fine_tuning", "gold"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A job whose train and test rows are answered by 7, a quarter of the test rows by 8."""
    folder = tmp_path_factory.mktemp("controls")
    write_job(folder, engine="transformers", learning_rate=1e-2, num_epochs=10)
    for split in ("train", "validation", "test"):
        file = folder / f"data/{split}.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        for index, row in enumerate(rows):
            row["answer"] = "8" if split == "test" and index % 4 == 0 else "7"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made(raw(folder), folder)
    return folder


def raw(folder: Path, **knobs: Any) -> dict[str, Any]:
    found = load(folder / "job.yaml")[0].model_dump(mode="json")
    found["train"] |= {"losses": DISTIL, **knobs}
    return found


def job_of(folder: Path, force: tuple[Any, ...] = (), **knobs: Any) -> JobRun:
    store = open_store(str(folder / "store"))
    return JobRun(build(raw(folder, **knobs)), store, force, lambda name, event: None)


def place_of(job: JobRun, name: str) -> Folder:
    return job.store.artifact(job.recipes[name].stage, job.recipes[name].name)


def inputs_of(job: JobRun, name: str) -> dict[str, Artifact]:
    """The artifacts that a stage reads, all of which stand."""
    found = {i: place_of(job, i).finished() for i in job.recipes[name].inputs}
    return {key: artifact for key, artifact in found.items() if artifact}


def make(job: JobRun, name: str) -> Artifact:
    """Reuses an artifact or makes it here, as the job would in a child."""
    inputs = inputs_of(job, name)
    assert set(inputs) == set(job.recipes[name].inputs)
    if standing := job.cached(name, inputs):
        return standing
    recipe, out = job.recipes[name], place_of(job, name)
    stage = Stage(recipe.stage, recipe.spec, job.store, inputs, out, SILENT, job.log)
    facts = {"train": learned, "evaluate": evaluated, "report": report}[recipe.stage](stage)
    return out.commit(
        {"facts": facts, "input_digests": {key: a.digest for key, a in inputs.items()}}
    )


def learned(stage: Stage) -> dict[str, Any]:
    return fit(stage.arguments(), SILENT)


def evaluated(stage: Stage) -> dict[str, Any]:
    """What evaluate finds when each model has been measured by a process that then was killed."""
    for role in stage.spec.roles:
        own = role not in ("teacher", "base")
        given = {"teacher": stage.spec.generate.teacher, "base": stage.spec.train.student}
        model = f"{stage.inputs[training_of(role)].uri}/student" if own else given[role]
        stage.out.write_json(
            f"measures-{role}-1.json", measure(stage.arguments(), role, model, 1, SILENT)
        )
    return evaluate(stage)


def weights(artifact: Artifact) -> bytes:
    return Folder(artifact.uri).read("student/model.safetensors")


def test_a_control_is_the_student_of_a_job_that_only_fine_tunes_and_is_reused_from_it(folder):
    plain, student = job_of(folder, losses=PLAIN), job_of(folder, controls=BOTH)
    before = make(plain, "train")
    control = student.cached("train-fine_tuning", inputs_of(student, "train-fine_tuning"))
    assert control == before
    assert student.cached("train", inputs_of(student, "train")) is None
    assert weights(make(student, "train")) != weights(control)
    # And the other way round: gold, trained as a control, is the student of that job.
    gold = make(student, "train-gold")
    alone = job_of(folder, losses=PLAIN, text="expected")
    assert alone.cached("train", inputs_of(alone, "train")) == gold
    # Made apart, they are equal byte for byte.
    stage = Stage(
        "train",
        student.recipes["train-fine_tuning"].spec,
        student.store,
        inputs_of(student, "train"),
        Folder(str(folder / "apart")),
        SILENT,
        student.log,
    )
    fit(stage.arguments(), SILENT)
    assert stage.out.read("student/model.safetensors") == weights(control)


def test_gold_learns_the_rows_own_answers_and_fine_tuning_the_teachers(folder):
    job = job_of(folder, controls=BOTH)
    texts = {}
    for name in ("fine_tuning", "gold"):
        audit = Folder(make(job, training_of(name)).uri).read("mask_audit.txt").decode()
        texts[name] = re.findall(r"learned: (\[.*\])", audit)
    assert texts["gold"] == ["['7', '<eos>']"] * 4
    assert len(texts["fine_tuning"]) == 4 and "['7', '<eos>']" not in texts["fine_tuning"]


def test_changing_the_controls_keeps_the_student_and_compares_anew(folder):
    one, two, none = (job_of(folder, controls=c) for c in (["gold"], ["gold", "fine_tuning"], []))
    make(one, "train")
    make(one, "train-gold")
    for other in (two, none):
        assert other.cached("train", inputs_of(other, "train"))
        for stage in ("evaluate", "report", "release"):
            assert other.recipes[stage].name != one.recipes[stage].name
    assert two.cached("train-gold", inputs_of(two, "train-gold"))
    assert "train-gold" not in none.recipes
    # Neither their order nor a repetition is another comparison.
    again = job_of(folder, controls=["fine_tuning", "gold", "gold"])
    assert again.recipes == two.recipes


def test_only_what_a_control_does_not_share_with_its_student_leaves_its_fingerprint(folder):
    def name(**knobs: Any) -> str:
        spec = build(raw(folder, controls=["fine_tuning"], **knobs))
        return recipes(spec, {"train.plug_ins": str(knobs)})["train-fine_tuning"].name

    same = name()
    assert name(losses=[{"name": "jsd"}]) == name(teacher="live", live_top_k=3) == same
    assert len({name(seed=1), name(num_epochs=1), name(learning_rate=1e-4), same}) == 4


def test_who_forces_train_forces_the_controls(folder):
    job = job_of(folder, force=("train",), controls=BOTH)
    assert job.force == {"train", "train-fine_tuning", "train-gold"}
    make(job_of(folder, controls=BOTH), "train-gold")
    assert job.cached("train-gold", inputs_of(job, "train-gold")) is None


def test_the_report_shows_a_student_that_is_below_a_control_and_says_what_to_do(folder, capsys):
    job = job_of(folder, controls=BOTH)
    for name in ("train", "train-fine_tuning", "train-gold", "evaluate"):
        make(job, name)
    content = Folder(make(job, "report").uri).read_json("report.json")
    assert [*content["models"]] == ["teacher", "base", "student", "fine_tuning", "gold"]
    assert content["models"]["gold"]["metrics"]["accuracy"]["value"] == 0.75
    answers = place_of(job, "evaluate").read("answers-gold.jsonl").splitlines()
    assert {json.loads(line)["text"] for line in answers} == {"7"}
    gaps = content["comparison"]["differences"]
    assert gaps["gold"]["value"] == pytest.approx(-0.75)
    assert gaps["gold"]["low"] < -0.75 < gaps["gold"]["high"] < 0
    outcomes = {role: gap["outcome"] for role, gap in gaps.items()}
    assert outcomes == dict.fromkeys(("teacher", "base", "fine_tuning"), "unclear") | {
        "gold": "below"
    }
    (warning,) = content["training"]["warnings"]
    assert "below plain fine-tuning on the rows' own answers" in warning
    assert "train.text: expected" in warning
    page = place_of(job, "report").read("report.md").decode()
    assert warning in page and "- gold: 7" in page
    assert "|  | teacher | base | student | fine_tuning | gold |" in page
    assert "| student minus it | +0.0 | +0.0 |  | +0.0 | -75.0 |" in page
    assert "It is 75.0 points (" in page
    print_report(read_content(content), "page")
    shown = capsys.readouterr().out
    assert "fine_tuning" in shown and warning in " ".join(shown.split())


@pytest.mark.parametrize(
    ("gap", "words"),
    [
        ((0.062, 0.04, 0.084), "It is 6.2 points (4.0 to 8.4) above plain fine-tuning on the same"),
        ((0.004, -0.012, 0.02), "The test cannot tell it from plain fine-tuning on the same rows "),
        ((-0.031, -0.052, -0.01), "It is 3.1 points (1.0 to 5.2) below plain fine-tuning on the"),
    ],
)
def test_the_verdict_says_where_the_student_stands_against_a_control(gap, words):
    score = {"accuracy": Estimate(0.5, 0.4, 0.6)}
    model = MeasuredModel("model", "echo", score, tokens_per_second=1.0, weights_bytes=1)
    found = {"accuracy": Difference(*gap, 500)}
    roles = ("teacher", "base", "student", "fine_tuning")
    differences = dict.fromkeys(("base", "fine_tuning"), found)
    comparison = compare(Evaluated(dict.fromkeys(roles, model), differences))
    said = verdict(comparison, GateOutcome(True, []))
    assert f"passed the gate. {words}" in said and "  " not in said
    assert len(warnings(comparison)) == ("below" in words)


@pytest.mark.parametrize(
    ("control", "knobs"),
    [
        ("fine_tuning", {"losses": PLAIN}),
        ("fine_tuning", {"losses": [*PLAIN, {"name": "forward_kl", "weight": 0}]}),
        ("gold", {"losses": PLAIN, "text": "expected"}),
    ],
)
def test_a_control_that_would_be_the_student_itself_is_refused(folder, control, knobs):
    with pytest.raises(SpecError, match=f"train.controls: {control} would compare .* with itself"):
        build(raw(folder, controls=[control], **knobs))
    other = {"fine_tuning": "gold", "gold": "fine_tuning"}[control]
    assert build(raw(folder, controls=[other], **knobs)).controls == (other,)


def test_gold_without_answers_of_the_rows_own_is_refused_before_the_run(folder, tmp_path):
    def refused(rows: list[dict[str, Any]], task_type: str) -> str | None:
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        job = raw(folder, controls=["gold"])
        job["prepare"] |= {"task_type": task_type, "train": str(tmp_path / "rows.jsonl")}
        job["prepare"] |= {"test": job["prepare"]["train"], "validation": None}
        try:
            check(build(job), open_store(str(tmp_path / "store")))
        except SpecError as error:
            return str(error)
        return None

    says = "no train row has one; add answers"
    assert says in str(refused([{"question": "1 + 1 = ?"}], "math"))
    rows = [{"question": "1 + 1 = ?"}, {"question": "2 + 2 = ?", "answer": "4"}]
    assert refused(rows, "math") is None
    turns = [("user", "Hi"), ("assistant", "Hello"), ("user", "Bye"), ("assistant", "Bye")]
    chat = {"messages": [{"role": role, "content": text} for role, text in turns]}
    assert "no train row has one after a single turn" in str(refused([chat], "conversation"))
    assert refused([{"messages": chat["messages"][:2]}], "conversation") is None
