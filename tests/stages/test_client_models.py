"""Models from Python: any of them asked a file of questions, its scores counted by hand."""

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import sacrebleu
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from retort import RetortClient
from retort.client.models import Models, ModelVersion
from retort.data.task_types.qa import normal
from retort.errors import DataError, SpecError
from retort.jobs.finding import FoundModel, find
from retort.spec import load
from retort.store import Store, open_store
from retort.tracking import ReleasedStudent, Tracker, open_registry, promote
from tests.support.tiny import save_model, write_job

ECHO = {"evaluate.engine": "echo"}
REPORT, RELEASE = "a" * 16, "b" * 16
MAX_TOKENS = 12


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A store with a job's student: its release, the report it came from, versions in MLflow."""
    home = tmp_path_factory.mktemp("models")
    spec = load(write_job(home, "transformers"))[0].model_dump(mode="json")
    store = open_store(str(home / "store"))
    reported = store.artifact("report", REPORT)
    scored = {"student": {"metrics": {"accuracy": {"value": 0.75}}}}
    content = {"ran": {"spec": spec}, "comparison": {"metric": "accuracy"}, "models": scored}
    reported.write_json("report.json", content)
    reported.commit({})
    release = store.artifact("release", RELEASE)
    release.put_tree(save_model(home / "student", seed=5), "model")
    release.commit({"ingredients": {"inputs": {"report": REPORT}}})
    store.job("tiny").write_json("report.json", {"fingerprints": {"release": RELEASE}})
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        warned: list[str] = []
        tracker = Tracker(store, warned.append)
        tracker.open_job("tiny", {}, "none")
        source = f"{release.uri}/model"
        for name, content_id, passed in (
            ("tiny-distilled", "1", True),
            ("tiny-distilled", "2", False),
            ("refused", "1", False),
            ("refused", "2", False),
        ):
            tracker.register(ReleasedStudent(name, source, passed, "t", content_id))
        tracker.register(
            ReleasedStudent("gone", f"{store.uri}/artifacts/release/gone/model", True, "t", "1")
        )
        assert not warned
    return home


@pytest.fixture
def models(home, monkeypatch) -> Models:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(home)
    return RetortClient(store="store", local=True).models


@pytest.fixture
def store(models) -> Store:
    return open_store("store")


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@torch.inference_mode()
def greedy(folder: Path, questions: list[str]) -> list[str]:
    """What a model answers, one question and one token after the other."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    answers = []
    for question in questions:
        chat = [{"role": "user", "content": question}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
        start = len(ids)
        while len(ids) - start < MAX_TOKENS and ids[-1] != tokenizer.eos_token_id:
            ids = [*ids, int(model(torch.tensor([ids])).logits[0, -1].argmax())]
        answers.append(tokenizer.decode(ids[start:], skip_special_tokens=True))
    return answers


def test_a_registered_model_is_asked_as_its_job_asks_and_scored_as_by_hand(models, tmp_path, home):
    questions = [f"{n} + {7 * n} = ?" for n in range(8)]
    said = greedy(home / "student", questions)
    assert all(map(normal, said)) and len(set(said)) > 1
    right = [n for n in range(8) if n % 3]  # five of eight
    wanted = [said[n] if n in right else f"nothing {n}" for n in range(8)]
    rows = [{"question": q, "answer": w} for q, w in zip(questions, wanted, strict=True)]
    names = ["accuracy", "bleu_score", "inference_time", "rouge_l"]
    found = models.evaluate(
        model_name="tiny-distilled",
        test_data=str(write(tmp_path / "rows.jsonl", rows)),
        metrics=names,
        task_type="qa",
    )
    assert (found.model, found.n) == ("tiny-distilled/1", 8)
    scores = found.metrics
    assert list(scores) == names
    assert found["accuracy"] == len(right) / 8 and scores["accuracy"].n == 8
    assert 0 <= scores["accuracy"].low < 5 / 8 < scores["accuracy"].high <= 1
    bleu = sacrebleu.corpus_bleu([*map(normal, said)], [[*map(normal, wanted)]]).score
    assert found["bleu_score"] == pytest.approx(bleu)
    time = scores["inference_time"]
    assert 0 < time.low <= time.value <= time.high and time.value <= time.p95
    assert time.n == 4  # the job's latency_samples


def test_the_base_of_a_student_is_asked_by_the_task_types_own_metrics(models, tmp_path):
    rows = [
        {"question": f"{a} + {b} = ?", "answer": str(c)}
        for a, b, c in ((1, 2, 3), (0, 5, 5), (0, 6, 6), (4, 4, 8))
    ]
    data = write(tmp_path / "rows.jsonl", [*rows, {"question": "", "answer": "1"}])
    knobs = {**ECHO, "prepare.max_bad_ratio": 0.3, "evaluate.max_tokens": 40}
    # It repeats the question, of which the last number is right where the first is 0.
    found = models.evaluate("tiny-baseline", data, knobs=knobs)
    assert found.n == 4  # the empty question is a bad row
    assert found["accuracy"] == 0.5
    assert set(found) == {"accuracy"}
    few = models.evaluate("tiny-baseline", data, knobs={**knobs, "evaluate.limit": 3})
    assert (few.n, few["accuracy"]) == (3, pytest.approx(2 / 3))
    assert Path(found.model).name == "base"


def test_a_name_stands_for_its_champion_else_its_challenger_else_its_newest(models, store):
    labels = {name: find(store, name).label for name in ("tiny-distilled", "refused", "refused/1")}
    assert labels == {
        "tiny-distilled": "tiny-distilled/1",
        "refused": "refused/2",
        "refused/1": "refused/1",
    }
    assert find(store, "tiny-distilled@challenger").label == "tiny-distilled/1"
    assert find(store, "tiny").label == "tiny"  # the job's latest release
    client = open_registry(store)
    client.set_registered_model_alias("refused", "champion", "1")
    assert find(store, "refused").label == "refused/1"
    client.delete_registered_model_alias("refused", "champion")


def test_a_base_is_found_by_the_students_name_and_by_the_one_of_the_tools_people_know(store, home):
    for name in ("tiny-baseline", "tiny-distilled-baseline", "tiny-distilled/2-baseline"):
        found = find(store, name)
        assert found.address == found.spec["train"]["student"] == str(home / "models/base")


def test_a_folder_of_a_release_knows_its_job_and_another_must_be_told_the_task_type(store, models):
    folder = f"store/artifacts/release/{RELEASE}/model"
    assert find(store, folder).spec["prepare"]["task_type"] == "math"
    assert find(store, "student") == find(store, "./student")
    with pytest.raises(SpecError, match=r"task_type: missing.*conversation, math, nli, qa"):
        models.evaluate("./student", "data/test.jsonl")


def test_a_moved_store_and_a_release_that_is_gone(store, home, tmp_path):
    shutil.copytree(home / "store", tmp_path / "store")
    moved = open_store(str(tmp_path / "store"))
    shutil.move(home / "store/artifacts", home / "store/elsewhere")
    try:
        found = find(moved, "tiny-distilled")
        with pytest.raises(SpecError, match="tiny-distilled/1: its folder is gone"):
            find(store, "tiny-distilled")
    finally:
        shutil.move(home / "store/elsewhere", home / "store/artifacts")
    assert found.address == f"{moved.uri}/artifacts/release/{RELEASE}/model" and found.spec
    with pytest.raises(SpecError, match="gone/1: its folder is gone"):
        find(store, "gone")


def test_every_version_is_listed_with_its_aliases_gate_and_main_score(models, store):
    known = {(m.name, m.version): m for m in models.list()}
    assert [*known] == [
        ("gone", "1"),
        ("refused", "2"),
        ("refused", "1"),
        ("tiny-distilled", "2"),
        ("tiny-distilled", "1"),
    ]
    source = f"{store.uri}/artifacts/release/{RELEASE}/model"
    first = known["tiny-distilled", "1"]
    assert first == ModelVersion(
        "tiny-distilled", "1", ("challenger",), "passed", source, "accuracy", 0.75
    )
    assert known["tiny-distilled", "2"].gate == "refused"
    assert known["gone", "1"].score is None
    assert promote(open_registry(store), "tiny-distilled").done
    assert models.list()[-1].aliases == ("challenger", "champion")


def test_an_empty_store_lists_nothing_and_makes_no_database(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    empty = Models(str(tmp_path / "store"))
    assert empty.list() == []
    with pytest.raises(SpecError, match="no model 'tiny'; registered: none yet"):
        empty.evaluate("tiny", "rows.jsonl")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name", ["", "@champion", "tinny-distilled", "tiny-distilled/9", "tiny-distilled@best"]
)
def test_an_unknown_model_is_said_with_what_there_is(models, name):
    with pytest.raises(
        SpecError, match=r"registered: gone \(version 1\); .*distilled \(version 1, 2"
    ):
        models.evaluate(name, "data/test.jsonl")


def test_what_cannot_be_asked_is_refused_before_a_model_is_opened(models, tmp_path):
    def refused(error: type[Exception], says: str, **more: Any) -> None:
        with pytest.raises(error, match=says):
            models.evaluate(**{"model_name": "tiny", "test_data": "data/test.jsonl", **more})

    refused(SpecError, "'./nowhere' is neither a folder", model_name="./nowhere")
    refused(SpecError, "accurcy.*did you mean 'accuracy'.*inference_time", metrics=["accurcy"])
    refused(SpecError, "'accuracy' is one name; give a list", metrics="accuracy")
    refused(SpecError, "agreement is with a teacher's answers", metrics=["agreement"])
    refused(SpecError, "unknown key", knobs={"evaluate.engin": "echo"})
    refused(SpecError, "'name.x' does not lead to a knob", knobs={"name.x": 1})
    refused(SpecError, "openai asks an endpoint", knobs={"evaluate.engine": "openai"})
    refused(SpecError, "task type", task_type="maths")
    refused(SpecError, r"no file .*nothing\.jsonl", test_data="nothing.jsonl")
    bad = write(tmp_path / "bad.jsonl", [{"question": "1 + 1 = ?", "answer": "2"}, {"no": "row"}])
    refused(DataError, "1 of 2 rows are bad", test_data=bad)
    refused(DataError, "holds no usable row", test_data=write(tmp_path / "none.jsonl", []))


def test_a_model_on_s3_is_fetched_for_as_long_as_it_is_asked(s3_here, home):
    release = open_store(f"s3://retort/models/{os.getpid()}").artifact("release", RELEASE)
    release.put_tree(home / "student", "model")
    with FoundModel("far", f"{release.uri}/model", {}).here() as folder:
        names = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    assert names == {path.name: path.read_bytes() for path in (home / "student").iterdir()}
    assert not Path(folder).exists()


def test_accuracy_of_a_conversation_is_agreement_with_its_own_reply(models, tmp_path):
    rows = [{"prompt": "one two", "completion": c} for c in ("one two", "one  two", "three")]
    found = models.evaluate(
        "./student", write(tmp_path / "rows.jsonl", rows), ["accuracy"], "conversation", ECHO
    )
    assert found.n == 3 and found["accuracy"] == pytest.approx(2 / 3)
    assert found.metrics["accuracy"].meaning == "agreement with the expected reply"
    own = models.evaluate("./student", tmp_path / "rows.jsonl", None, "conversation", ECHO)
    assert next(iter(own)) == "accuracy" and own["accuracy"] == found["accuracy"]
    untold = write(tmp_path / "untold.jsonl", [{"prompt": "one two"}])
    unknown = models.evaluate("./student", untold, ["accuracy"], "conversation", ECHO)
    assert math.isnan(unknown["accuracy"]) and unknown.metrics["accuracy"].n == 0
