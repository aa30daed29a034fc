"""The teacher and the student of an Azure ML job file: names, addresses and the key."""

import os
from functools import partial

import pytest

from retort.errors import SpecError
from retort.spec.azure import KEY_ENV, chat_endpoint
from tests.support.azure_job import CONNECTION, load_with, without_key
from tests.support.misbehaving import SECRET


@pytest.fixture
def given(tmp_path, monkeypatch):
    """Loads the job with keys of it changed, in an environment without a key."""
    without_key(monkeypatch)
    return partial(load_with, tmp_path)


def test_a_name_of_the_registry_is_a_hub_id_or_asks_for_one(given):
    registry = "azureml://registries/azureml-meta/models"
    for name, hub_id in {
        "Meta-Llama-3.1-8B-Instruct": "meta-llama/Llama-3.1-8B-Instruct",
        "Phi-3-mini-4k-instruct": "microsoft/Phi-3-mini-4k-instruct",
        "Phi-3-mini-128k-instruct": "microsoft/Phi-3-mini-128k-instruct",
        "Phi-3.5-mini-instruct": "microsoft/Phi-3.5-mini-instruct",
        "Phi-4-mini-instruct": "microsoft/Phi-4-mini-instruct",
    }.items():
        spec, notes = given({"student_model": f"{registry}/{name}/versions/2"}, student=None)
        assert spec.train.student == hub_id
        assert any(f"{name} of the Azure registry is train.student" in note for note in notes)
    with pytest.raises(SpecError, match=r"did you mean 'phi-4-mini-instruct'.*give --student"):
        given({"student_model": f"{registry}/Phi-4-mini-instrukt/versions/1"}, student=None)
    with pytest.raises(SpecError, match="give --student"):
        given({"student_model": "azureml:mine:1"}, student=None)
    assert given({"student_model": "org/mine"}, student=None)[0].train.student == "org/mine"


def test_a_key_is_sent_but_stands_in_no_spec_and_no_note(given, monkeypatch):
    spec, notes = given({f"{CONNECTION}.api_key": SECRET})
    assert os.environ[KEY_ENV] == SECRET
    assert spec.generate.api_key_env == KEY_ENV
    assert SECRET not in str(notes) + spec.model_dump_json() + repr(spec)
    assert any("api_key is sent and not stored; remove it from the file" in n for n in notes)
    # The key of a file is for the endpoint of that file alone.
    spec, _ = given({f"{CONNECTION}.api_key": "sk-another"})
    assert os.environ[KEY_ENV] == "sk-another"
    given()
    assert KEY_ENV not in os.environ
    given({f"{CONNECTION}.api_key": SECRET}, teacher="http://localhost:1/v1")
    assert KEY_ENV not in os.environ
    monkeypatch.setenv(KEY_ENV, "sk-my-own")
    _, notes = given({f"{CONNECTION}.api_key": SECRET})
    assert os.environ[KEY_ENV] == "sk-my-own"
    assert any(f"the key in {KEY_ENV} is sent" in note for note in notes)


def test_a_teacher_on_the_command_line_takes_the_place_of_the_endpoint(given, tmp_path):
    remote = given(teacher="http://localhost:8000/v1/chat/completions")[0].generate
    assert (remote.engine, remote.endpoint) == ("openai", "http://localhost:8000/v1")
    assert (remote.teacher, remote.api_key_env) == ("Meta-Llama-3-1-405B-Instruct-vkn", None)
    local = given({CONNECTION: None}, teacher="org/teacher")[0].generate
    assert (local.engine, local.endpoint, local.api_key_env) == ("auto", None, None)
    assert (local.teacher, local.top_k) == ("org/teacher", 0)
    assert given({"prompt_settings": {}}, teacher="org/teacher")[0].generate.top_k == 16
    with pytest.raises(SpecError, match=f"{CONNECTION}.name: missing"):
        given({CONNECTION: None})


def test_models_of_the_command_line_start_at_the_working_directory(given, tmp_path, monkeypatch):
    here = tmp_path / "here"
    (here / "org/model").mkdir(parents=True)
    (tmp_path / "org/other").mkdir(parents=True)  # beside the job file
    monkeypatch.chdir(here)
    spec, _ = given(teacher="org/model", student="org/other")
    assert spec.generate.teacher == str(here / "org/model")
    assert spec.train.student == "org/other"
    spec, _ = given(teacher="./none", overrides=["train.student=org/other"])
    assert spec.generate.teacher == str(here / "none")
    assert spec.train.student == str(tmp_path / "org/other")


def test_a_key_of_the_users_own_is_sent_to_an_endpoint_of_the_command_line(given, monkeypatch):
    monkeypatch.setenv(KEY_ENV, "sk-my-own")
    spec, notes = given(teacher="http://localhost:8000/v1")
    assert spec.generate.api_key_env == KEY_ENV
    assert "sk-my-own" not in str(notes)


def test_the_endpoint_is_what_stands_before_the_path_of_its_chats():
    for given, endpoint in {
        "https://a.b/chat/completions": "https://a.b",
        "https://a.b/v1/chat/completions/": "https://a.b/v1",
        "https://a.b/v1/": "https://a.b/v1",
    }.items():
        assert chat_endpoint(given) == endpoint
