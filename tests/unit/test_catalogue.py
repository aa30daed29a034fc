"""Names that people write for models: what they stand for, and what a folder of models changes."""

from datetime import date
from pathlib import Path

import pytest
import yaml

from retort.errors import SpecError
from retort.spec import build_at, catalogue, load
from retort.store import model_folder

JOB = {
    "name": "named",
    "prepare": {"train": "train.jsonl", "test": "test.jsonl"},
    "generate": {"teacher": "deepseek-v3"},
    "train": {"student": "phi-4-mini"},
}


@pytest.fixture
def job(tmp_path):
    def loaded(teacher=None, student=None, **generate):
        raw = {**JOB, "generate": {**JOB["generate"], **generate}}
        raw["generate"]["teacher"] = teacher or raw["generate"]["teacher"]
        raw["train"] = {"student": student or "phi-4-mini"}
        path = tmp_path / "job.yaml"
        path.write_text(yaml.safe_dump(raw))
        return load(path)

    return loaded


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("deepseek-v3", "deepseek-v3"),
        ("DeepSeek_V3", "deepseek-v3"),
        ("meta-llama-3.1-405b-instruct", "llama-3.1-405b-instruct"),
        ("Llama3.1-8B", "llama-3.1-8b-instruct"),
        ("Meta-Llama-3.1-8B-Instruct", "llama-3.1-8b-instruct"),
        ("Phi-4-mini-instruct", "phi-4-mini-instruct"),
        ("phi4 mini", "phi-4-mini-instruct"),
        ("phi-3-mini-4k", "phi-3-mini-4k-instruct"),
        ("Phi-3-mini-128k-instruct", "phi-3-mini-128k-instruct"),
        ("phi-3.5-mini", "phi-3.5-mini-instruct"),
        ("GPT4", "gpt-4"),
        ("gpt-4o-2024-08-06", "gpt-4o"),
        ("claude-3-5-sonnet", "claude-3.5-sonnet"),
        ("Claude 3.5 Sonnet", "claude-3.5-sonnet"),
        ("phi-5", None),
        ("gpt-4x", None),
        ("llama", None),
    ],
)
def test_a_name_is_known_however_it_is_written(written, name):
    found = catalogue.find(written)
    assert (found.name if found else None) == name


def test_every_entry_can_be_run_and_says_what_it_takes():
    for model in catalogue.models().values():
        assert bool(model.hub) != bool(model.engine and model.api and model.key)
        assert model.parameters or not model.hub
        assert model.closed is None or isinstance(model.closed, date)
        assert f"{model.context:,} tokens" in str(model)


def test_open_models_become_hub_ids_and_validate_is_told_their_size(job):
    spec, notes = job()
    assert spec.generate.teacher == "deepseek-ai/DeepSeek-V3"
    assert spec.train.student == "microsoft/Phi-4-mini-instruct"
    assert any("671 GB of weights" in note for note in notes)
    assert any(note.startswith("train.student: phi-4-mini is the hub's") for note in notes)


def test_a_model_at_an_endpoint_brings_its_engine_and_no_signal(job):
    spec, notes = job(teacher="gpt-4o")
    assert (spec.generate.engine, spec.generate.teacher) == ("openai", "gpt-4o")
    assert spec.generate.top_k == 0
    assert any("OPENAI_API_KEY" in note and "2027-01-14" in note for note in notes)
    spec, _ = job(teacher="claude-3.5-sonnet")
    assert spec.generate.teacher == "claude-3-5-sonnet-20241022"
    assert spec.generate.engine == "anthropic"
    dated, _ = job(teacher="claude-3-5-sonnet-20240620")
    assert dated.generate.teacher == "claude-3-5-sonnet-20240620"


def test_a_name_at_an_endpoint_of_the_users_own_stays_as_it_is(job):
    spec, notes = job(teacher="phi-4-mini", engine="openai", endpoint="http://h/v1", top_k=0)
    assert spec.generate.teacher == "phi-4-mini"
    assert not any(note.startswith("generate.teacher") for note in notes)


def test_an_endpoint_is_taken_from_where_the_providers_own_clients_take_it(job, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://proxy:8000/v1")
    monkeypatch.delenv("ANTHROPIC_BASE_URL", raising=False)
    spec, notes = job(teacher="gpt-4")
    assert spec.generate.endpoint == "http://proxy:8000/v1"
    assert "generate.endpoint is http://proxy:8000/v1, from OPENAI_BASE_URL" in " ".join(notes)
    own, _ = job(teacher="mine", engine="openai", endpoint="http://host/v1", top_k=0)
    assert own.generate.endpoint == "http://host/v1"
    assert job(teacher="claude-3.5-sonnet")[0].generate.endpoint is None
    assert job()[0].generate.endpoint is None


def test_a_student_needs_weights(job):
    with pytest.raises(SpecError, match=r"train\.student: gpt-4 is .*Name an open model"):
        job(student="gpt-4")


def test_a_folder_beside_the_job_and_a_folder_of_models_come_first(job, tmp_path, monkeypatch):
    (tmp_path / "phi-4-mini").mkdir()
    assert job()[0].train.student == str(tmp_path / "phi-4-mini")
    kept = tmp_path / "kept"
    (kept / "deepseek-ai/DeepSeek-V3").mkdir(parents=True)
    monkeypatch.setenv("RETORT_MODELS_FOLDER", str(kept))
    assert job()[0].generate.teacher == str(kept / "deepseek-ai/DeepSeek-V3")


def test_an_unknown_name_is_told_the_nearest():
    with pytest.raises(SpecError, match=r"did you mean 'phi-4-mini-instruct'"):
        model_folder.locate("phi-4-mini-instrukt", "train.student")


def test_the_flat_form_learns_from_text_where_the_tokenizers_are_known_to_differ():
    def spec(teacher: str, student: str):
        flat = {"teacher_model": teacher, "student_model": student, "training_data": "rows.jsonl"}
        flat |= {"task_type": "conversation", "hyperparameters": {"temperature": 0.7}}
        return build_at(flat, Path("/nowhere"))

    differ = spec("deepseek-v3", "phi-4-mini")
    assert differ.generate.top_k == 0 and [loss.name for loss in differ.losses] == ["cross_entropy"]
    assert spec("gpt-4", "phi-4-mini").generate.top_k == 0
    alike = spec("llama-3.1-405b-instruct", "llama-3.1-8b-instruct")
    assert alike.generate.top_k and alike.losses[1].name == "forward_kl"
    assert spec("./phi-4", "someone/phi-4-mini-tuned").losses[1].name == "forward_kl"
