"""Real artifacts, broken as published pipelines broke theirs: every run refuses them, or says so.

Which trap is held by which test is listed in test_traps.py.
"""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig

from retort.data.encoding import EncodedRow, encode
from retort.engines import Request, find_engine
from retort.errors import DataError, StageError
from retort.events import SILENT, Event, Reporter
from retort.records import Response, read_lines, write_lines
from retort.spec import Loss, build
from retort.stages.engine_settings import settings_of
from retort.stages.evaluate import check_template
from retort.stages.generate.parity import parity
from retort.stages.stage import Stage, read_signals
from retort.stages.train import training_rows
from retort.stages.train.alignment import ends_well
from retort.stages.train.distributed import Ranks
from retort.stages.train.layout import Layout
from retort.stages.train.loop import Trainer, fit
from retort.stages.train.objective import Objective, terms_of
from retort.stages.train.student import open_student
from retort.store import MANIFEST, Folder, model_folder, signals
from retort.store.signals import Signal, captured
from tests.stages.test_train import train
from tests.support.tiny import save_model
from tests.support.training import job, made
from tests.support.zoo import save_family

END = 2
Change = Callable[[dict[str, Signal]], dict[str, Signal]]


@pytest.fixture(scope="module")
def ready(tmp_path_factory) -> Stage:
    """A train stage whose teacher scored sixteen worked sums."""
    folder = tmp_path_factory.mktemp("traps")
    teacher = save_model(folder / "teacher", seed=1)
    raw = job(folder, teacher, save_model(folder / "base", hidden=32, layers=1, seed=2))
    return made(raw, folder)


def broken(stage: Stage, folder: Path, change: Callable[[Folder], None]) -> Stage:
    """The stage with a copy of the teacher's artifact that `change` was done on, then committed."""
    artifact = stage.inputs["generate"]
    there = Folder(str(shutil.copytree(artifact.uri, folder / "generate")))
    change(there)
    manifest = there.read_json(MANIFEST)
    there.remove(MANIFEST)
    there.commit(manifest)
    inputs = {**stage.inputs, "generate": dataclasses.replace(artifact, uri=there.uri)}
    return dataclasses.replace(stage, inputs=inputs)


def with_signals(change: Change) -> Callable[[Folder], None]:
    """A change of all signals of an artifact, which stand in one file."""

    def rewrite(there: Folder) -> None:
        vocabulary = there.read_manifest()["facts"]["vocabulary"]
        changed = change(read_signals(there))
        there.write("signals-00000.safetensors", signals.pack([*changed.items()], vocabulary))

    return rewrite


def with_facts(**facts: str) -> Callable[[Folder], None]:
    """A change of what a manifest says of the teacher."""

    def rewrite(there: Folder) -> None:
        there.amend(facts)

    return rewrite


def each(change: Callable[[Signal], Signal]) -> Change:
    return lambda found: {key: change(signal) for key, signal in found.items()}


def rolled(signal: Signal) -> Signal:
    return Signal(*(np.roll(column, 1, axis=0) for column in vars(signal).values()))


def asked_of(stage: Stage) -> dict[str, Any]:
    """The arguments of the generate stage that made what this stage reads."""
    return dataclasses.replace(stage, name="generate", out=stage.input("generate")).arguments()


SHIFTS: dict[str, Change] = {
    "by one token": each(rolled),
    "by one row": lambda found: dict(zip(found, [*found.values()][::-1], strict=True)),
    "out of the artifact": lambda found: dict([*found.items()][1:]),
    "from its end": each(lambda signal: Signal(*(c[:-1] for c in vars(signal).values()))),
}


@pytest.mark.parametrize("shift", SHIFTS)
def test_signals_that_moved_are_refused(ready, tmp_path, shift):
    moved = broken(ready, tmp_path, with_signals(SHIFTS[shift]))
    with pytest.raises(DataError, match=r"response train-\d+(: the signal's tokens|.* no signal)"):
        train(moved, tmp_path / "out")


def beneath(signal: Signal) -> Signal:
    own = {name: getattr(signal, name) for name in ("target_ids_T", "target_logprobs_T")}
    return dataclasses.replace(rolled(signal), **own)


def test_a_run_refuses_distributions_that_moved_beneath_their_tokens(ready, tmp_path):
    moved = broken(ready, tmp_path, with_signals(each(beneath)))
    with pytest.raises(DataError, match=r"more probable than an id|is not the one in its top k"):
        train(moved, tmp_path / "out")


def test_parity_notices_distributions_that_moved_beneath_their_tokens(ready, tmp_path):
    assert parity(asked_of(ready), "float32", SILENT)["kl_nats"] < 5e-3
    moved = broken(ready, tmp_path, with_signals(each(beneath)))
    with pytest.raises(StageError, match="nats of KL from a plain forward pass"):
        parity(asked_of(moved), "float32", SILENT)


def built(stage: Stage) -> training_rows.TrainingData:
    base = model_folder.check(stage.spec.train.student, "train.student")
    return training_rows.build(stage, base, [END])


def test_text_and_signal_are_joined_by_id_in_whatever_order_they_stand(ready, tmp_path):
    turned = broken(ready, tmp_path, with_signals(lambda found: dict([*found.items()][::-1])))
    assert [*read_signals(turned.input("generate"))] == [*read_signals(ready.input("generate"))][
        ::-1
    ]
    plain, other = built(ready).train, built(turned).train
    assert len(plain) == 16
    for (row, signal), (same, its) in zip(plain, other, strict=True):
        assert row == same
        assert np.array_equal(signal.ids_TK, its.ids_TK)


def test_a_manifest_of_another_template_is_refused(ready, tmp_path):
    other = broken(ready, tmp_path / "other", with_facts(template_sha256="0" * 64))
    says = "different chat templates, so the signal follows another prompt"
    with pytest.raises(DataError, match=says):
        train(other, tmp_path / "out")


def test_a_student_is_not_asked_in_another_form_than_it_learned(ready, tmp_path):
    stage = dataclasses.replace(ready, out=Folder(str(tmp_path / "train")))
    stage.out.commit({"facts": fit(stage.arguments(), SILENT)})
    inputs = {**ready.inputs, "train": stage.out.finished()}
    later, student = dataclasses.replace(stage, inputs=inputs), tmp_path / "train/student"
    check_template(later, student)
    template = student / "chat_template.jinja"
    template.write_text(template.read_text().replace("<user>", "<system>Think.<user>", 1) + " ")
    with pytest.raises(StageError, match="template is not the one that it was trained with"):
        check_template(later, student)


def test_each_answer_ends_with_the_one_end_token_and_the_audit_shows_it(ready, tmp_path):
    data = built(ready)
    for row, _ in data.train + data.validation:
        learned = row.labels[row.first :]
        assert learned.count(END) == 1 and learned[-1] == END
    train(ready, tmp_path)
    audit = (tmp_path / "mask_audit.txt").read_text()
    assert audit.count("'<eos>']") == audit.count("learned:") == 4
    assert audit.count("<assistant>'") == 4


def test_an_answer_with_two_end_tokens_or_none_is_not_learned_from(ready, tmp_path):
    def row(*answer: int) -> EncodedRow:
        return encode("r", [1, 5], list(answer))

    assert ends_well(row(7, END), [END], "accepted") and ends_well(row(7, 8), [END], "truncated")
    for answer, state in [((7, END, 8, END), "accepted"), ((7, 8), "accepted"), ((END,), "failed")]:
        assert not ends_well(row(*answer), [END], state)

    def spelt_out(there: Folder) -> None:
        responses = read_lines(Response, there.read("responses-00000.jsonl"))
        first = dataclasses.replace(responses[0], token_ids=[END, *responses[0].token_ids])
        there.write("responses-00000.jsonl", write_lines([first, *responses[1:]]))

    data = built(broken(ready, tmp_path, spelt_out))
    assert len(data.train) == 15 and "1 responses are not learned from" in data.warnings[0]


def test_rows_that_the_student_cannot_be_given_are_left_out_with_their_reason(ready, tmp_path):
    def beyond(there: Folder) -> None:
        responses = read_lines(Response, there.read("responses-00000.jsonl"))
        first = dataclasses.replace(responses[0], token_ids=[7, 60_000, END])
        chat = [{"role": "user", "content": "Hello"}]
        odd = dataclasses.replace(
            responses[1], messages=[{"role": "system", "content": "Hi"}, *chat]
        )
        there.write("responses-00000.jsonl", write_lines([first, odd, *responses[2:]]))

    stage = broken(ready, tmp_path, beyond)
    base = shutil.copytree(stage.spec.train.student, tmp_path / "base")
    template = (base / "chat_template.jinja").read_text()
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('No system') }}{% endif %}"
    (base / "chat_template.jinja").write_text(refuses + template)
    knobs = stage.spec.model_copy(
        update={
            "train": stage.spec.train.model_copy(
                update={"student": str(base), "losses": (Loss(name="cross_entropy"),)}
            )
        }
    )
    data = built(dataclasses.replace(stage, spec=knobs))
    assert len(data.train) == 14
    said = "\n".join(data.warnings)
    assert "1 responses are not learned from: they hold a token id beyond" in said
    assert "1 responses are not learned from: the student cannot be given their prompt" in said
    assert "No system" in said


def test_a_prompt_that_is_rendered_otherwise_than_at_capture_is_said(ready, tmp_path):
    said: list[Event] = []
    train(ready, tmp_path / "same", Reporter(said.append))
    assert not any("not rendered as when" in note for note in notes(said))

    def dated(there: Folder) -> None:
        responses = read_lines(Response, there.read("responses-00000.jsonl"))
        other = [dataclasses.replace(r, prompt_sha256="0" * 16) for r in responses[:3]]
        there.write("responses-00000.jsonl", write_lines([*other, *responses[3:]]))

    train(broken(ready, tmp_path, dated), tmp_path / "other", Reporter(said.append))
    assert any("3 prompts are not rendered as when" in note for note in notes(said))


def notes(said: list[Event]) -> list[str]:
    return [event["text"] for event in said if event["kind"] == "note"]


def narrow(k: int) -> Change:
    """A change that leaves only the k most probable ids of each token."""

    def keep(signal: Signal) -> Signal:
        order = np.argsort(-signal.logprobs_TK, axis=1)[:, :k]
        ids, logprobs = (
            np.take_along_axis(column, order, axis=1)
            for column in (signal.ids_TK, signal.logprobs_TK)
        )
        return captured(ids, logprobs, signal.target_ids_T, signal.target_logprobs_T)

    return each(keep)


def test_the_teachers_mass_in_the_top_k_is_logged_and_little_of_it_is_an_alarm(ready, tmp_path):
    masses = {}
    for k in (16, 1):
        stage = broken(ready, tmp_path / f"{k}", with_signals(narrow(k)))
        said: list[Event] = []
        train(stage, tmp_path / f"out-{k}", Reporter(said.append), batch_size=16, num_epochs=1)
        logged = next(e["values"]["teacher_top_k_mass"] for e in said if e["kind"] == "metrics")
        tails = np.concatenate([signal.tail_T for _, signal in built(stage).train])
        assert logged == pytest.approx(float((1 - np.exp(tails)).mean()), rel=1e-5)
        masses[k] = logged, [e["text"] for e in said if "teacher's mass" in e.get("text", "")]
    assert masses[16][0] > 0.5 and not masses[16][1]
    assert masses[1][0] < 0.5
    assert masses[1][1][0].startswith("warning: the top k holds only")


def trained_on(stage: Stage, out: Path, data: training_rows.TrainingData) -> list[torch.Tensor]:
    """The weights after a run, as `fit` makes it, on these items."""
    stage = dataclasses.replace(stage, out=Folder(str(out)))
    model, terms = open_student(stage.spec.train, "cpu"), terms_of(stage.spec)
    objective = Objective(model, None, terms, model.config.vocab_size)
    Trainer(stage, objective, Ranks(0, 1, "cpu", Layout())).run(data)
    return list(model.parameters())


def test_a_run_without_a_supervised_token_is_refused_and_a_step_without_one_is_no_nan(
    ready, tmp_path
):
    data = built(ready)
    masked = [training_rows.blank(item) for item in data.train]
    with pytest.raises(StageError, match="no supervised token; nothing would be learned"):
        trained_on(ready, tmp_path / "a", dataclasses.replace(data, train=masked))
    raw = ready.spec.model_dump(mode="json")
    raw["train"]["batch_size"] = 1
    some = dataclasses.replace(data, train=data.train[:1] + masked[1:])
    weights = trained_on(dataclasses.replace(ready, spec=build(raw)), tmp_path / "b", some)
    assert all(weight.isfinite().all() for weight in weights)


def test_a_step_of_sixteen_rows_is_that_of_sixteen_micro_batches_of_one(ready, tmp_path):
    assert len({len(row.labels) - row.first for row, _ in built(ready).train}) > 1
    records = []
    for most in (8192, 1):
        said: list[Event] = []
        runtime = {"micro_batch_tokens": most, "num_threads": 1}
        knobs = {"batch_size": 16, "num_epochs": 1, "runtime": runtime}
        train(ready, tmp_path / f"{most}", Reporter(said.append), **knobs)
        records.append(next(event["values"] for event in said if event["kind"] == "metrics"))
    for name in ("loss", "cross_entropy", "forward_kl", "gradient_norm", "teacher_top_k_mass"):
        assert records[0][name] == pytest.approx(records[1][name], rel=1e-5), name


def test_a_teacher_with_dropout_gives_what_it_gives_without(tmp_path):
    teacher = save_family("gpt-2", tmp_path)
    assert AutoConfig.from_pretrained(teacher).resid_pdrop == 0.1
    stage = made(job(tmp_path, teacher, teacher), tmp_path)
    assert {"engine", "engine_version", "dtype"} <= set(stage.facts("generate"))
    assert parity(asked_of(stage), "float32", SILENT)["kl_nats"] < 5e-3


def test_answers_end_at_their_end_token_and_only_those_are_whole(ready):
    raw = ready.spec.model_dump(mode="json")
    raw["generate"] |= {"mode": "answer", "temperature": 1.0, "max_tokens": 40}
    engine = find_engine("transformers").open_engine(settings_of(build(raw), ""))
    chats = [[{"role": "user", "content": f"{n} + 7 = ?"}] for n in range(16)]
    answers = [a.raw for a in engine.generate(Request(str(n), c) for n, c in enumerate(chats))]
    whole = [raw for raw in answers if raw["finish_reason"] == "stop"]
    assert 0 < len(whole) < len(answers) == 16
    assert all(raw["token_ids"].index(END) == len(raw["token_ids"]) - 1 for raw in whole)
    for raw in answers:
        assert raw in whole or (len(raw["token_ids"]) == 40 and END not in raw["token_ids"])
