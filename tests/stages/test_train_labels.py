"""The exact distillation of a label set: where a label is decided, and that it is learned."""

import json
from dataclasses import replace

import pytest
import yaml

from retort.data import encoding
from retort.errors import DataError, SpecError
from retort.events import SILENT, Event, Reporter
from retort.jobs import preflight
from retort.jobs.run import JobRun
from retort.records import Example
from retort.spec import build, load
from retort.stages.stage import Stage
from retort.stages.train import batches, training_rows
from retort.stages.train.loop import fit
from retort.store import Folder, model_folder, open_store
from tests.stages.test_train import ready, train
from tests.support.tiny import make_tokenizer, write_job

__all__ = ["ready"]

LABELS = ("yes", "no", "maybe")


def nli(index: int) -> dict[str, str]:
    return {
        "premise": f"{index} is {'even' if index % 2 == 0 else 'odd'}",
        "hypothesis": f"{index} is even?",
        "label": LABELS[index % 3],
    }


@pytest.fixture(scope="module")
def scored(tmp_path_factory) -> Stage:
    """A train stage on rows whose own labels the teacher scored."""
    folder = tmp_path_factory.mktemp("labels")
    path = write_job(folder, "transformers")
    job = yaml.safe_load(path.read_text())
    job["prepare"] |= {"task_type": "nli", "labels": list(LABELS)}
    job["generate"] |= {"mode": "score", "max_model_len": 256}
    job["train"]["losses"] = [{"name": "label_distribution"}]
    path.write_text(yaml.safe_dump(job))
    for start, split in ((0, "train"), (100, "validation"), (200, "test")):
        lines = (json.dumps(nli(start + n)) + "\n" for n in range(24))
        (folder / f"data/{split}.jsonl").write_text("".join(lines))
    running = JobRun(
        load(path)[0], open_store(str(folder / "store")), [], lambda stage, event: None
    )
    inputs = {"prepare": running.make("prepare", {})}
    inputs["generate"] = running.make("generate", dict(inputs))
    inputs["curate"] = running.make("curate", dict(inputs))
    return Stage("train", running.spec, running.store, inputs, Folder(""), SILENT, running.log)


def test_each_answer_knows_where_its_label_is_decided_and_the_labels_ids_there(scored):
    base = model_folder.check(scored.spec.train.student, "train.student")
    data = training_rows.build(scored, base, [2])
    tokenizer = encoding.load_tokenizer(scored.spec.train.student)
    assert len(data.train) > 12
    for row, _ in data.train:
        place, ids = row.choices
        assert row.labels[row.first + place] in ids
        assert sorted(tokenizer.decode([i]) for i in ids) == ["m", "n", "y"]
    batch = batches.collate(data.train[:4], "cpu")
    assert (batch.target.choices_NC >= 0).sum() == 4 * 3
    labels = {int(i) for i in batch.target.labels_N[(batch.target.choices_NC >= 0).any(dim=1)]}
    assert {tokenizer.decode([i]) for i in labels} <= {"y", "n", "m"}


def test_the_label_distribution_is_learned_and_logged(scored, tmp_path):
    said: list[Event] = []
    raw = scored.spec.model_dump(mode="json")
    # One step a pass, so that its loss is that of all rows.
    raw["train"] |= {"num_epochs": 40, "learning_rate": 3e-3, "batch_size": 24}
    fit(
        replace(scored, spec=build(raw), out=Folder(str(tmp_path))).arguments(),
        Reporter(said.append),
    )
    curve = [event["values"] for event in said if event["kind"] == "metrics"]
    assert curve[-1]["label_distribution"] < 0.3 * curve[0]["label_distribution"]


def chosen(text: str, options: dict[str, str] | None) -> tuple[int, list[str]] | None:
    tokenizer = make_tokenizer()
    example = Example("e", "train", [{"role": "user", "content": "?"}], options=options)
    found = training_rows.choices(tokenizer, example, text, tokenizer(text)["input_ids"])
    return found and (found[0], [tokenizer.decode([i]) for i in found[1]])


def test_the_last_label_that_is_written_counts_in_any_case():
    options = {label: label for label in ("not a", "not b", "c")}
    assert chosen("not b", options) == (0, ["n", "c"])
    assert chosen("It is c. Answer= Not a", options)[0] == len("It is c. Answer= ")
    assert chosen("It is c. Answer= Not a", options)[1] == ["N", "C"]
    assert chosen("no such thing", {"x": "x"}) is None
    assert chosen("c", None) is None
    ab = {"A": "first", "B": "second"}
    assert chosen("B", ab) == (0, ["A", "B"]) or chosen("B", ab) == (0, ["B", "A"])


def refusal_of(tmp_path, task_type: str, row: dict, **prepare) -> str:
    """What a job of one row is told before it runs that learns labels; nothing if it may run."""
    path = write_job(tmp_path, "transformers", losses=[{"name": "label_distribution"}])
    job = yaml.safe_load(path.read_text())
    job["prepare"] |= {"task_type": task_type, **prepare}
    path.write_text(yaml.safe_dump(job))
    for split in ("train", "validation", "test"):
        (tmp_path / f"data/{split}.jsonl").write_text(json.dumps(row) + "\n")
    try:
        preflight.check(load(path)[0], open_store(str(tmp_path / "store")))
    except SpecError as error:
        return str(error)
    return ""


def test_a_job_whose_rows_have_no_labels_is_refused_before_the_teacher_is_asked(tmp_path):
    open_one = {"question": "1 + 1 = ?", "answer": "2"}
    said = refusal_of(tmp_path, "math", open_one)
    assert said.startswith("train.losses: label_distribution") and "task type math" in said
    assert "prepare.labels" in refusal_of(tmp_path, "qa", open_one)
    closed = {"question": "Which?", "choices": ["one", "two"], "answer": "A"}
    assert refusal_of(tmp_path, "qa", closed) == ""
    assert refusal_of(tmp_path, "qa", {**open_one, "answer": "no"}, labels=["yes", "no"]) == ""
    assert refusal_of(tmp_path, "nli", nli(0), labels=list(LABELS)) == ""


def test_a_job_without_labels_is_told_what_the_loss_is_for(ready, tmp_path):
    with pytest.raises(DataError, match="nli and multiple choice"):
        train(ready, tmp_path, losses=[{"name": "label_distribution"}])
