"""The Azure ML job file is accepted unchanged: every key of it, and no word of its key."""

from functools import partial

import pytest
import yaml

from retort.errors import SpecError
from retort.spec import build, load
from retort.spec.azure import KEY_ENV
from tests.support.azure_job import CONNECTION, load_with, without_key
from tests.support.misbehaving import SECRET
from tests.support.real_data import AZURE, needs_azure

INFERENCE = "teacher_model_settings.inference_parameters"
REQUESTS = "teacher_model_settings.endpoint_request_settings"


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    without_key(monkeypatch)


@pytest.fixture
def given(tmp_path):
    return partial(load_with, tmp_path)


@needs_azure
@pytest.mark.parametrize("name", ["nli", "math"])
def test_a_sample_is_read_unchanged_and_each_value_says_what_it_became(name):
    spec, notes = load(AZURE / name / f"distillation_{name}.yaml", student="org/student")
    host = "https://Meta-Llama-3-1-405B-Instruct-vkn.westus3.models.ai.azure.com"
    assert spec == build(
        {
            "name": f"Distillation-{name}-llama",
            "prepare": {
                "task_type": name,
                "train": str(AZURE / name / f"train_{name}.jsonl"),
                "validation": str(AZURE / name / f"validation_{name}.jsonl"),
            },
            "generate": {
                "teacher": "Meta-Llama-3-1-405B-Instruct-vkn",
                "engine": "openai",
                "endpoint": host,
                "api_key_env": KEY_ENV,
                "temperature": 0.1,
                "max_tokens": 1024,
                "top_p": 0.95,
                "reasoning": "chain_of_thought",
                "top_k": 0,
                "min_success_ratio": 0.7,
                "runtime": {"max_concurrency": 10},
            },
            "curate": {"rationale": "drop"},
            "train": {
                "student": "org/student",
                "learning_rate": 4e-6,
                "num_epochs": 5,
                "batch_size": 2,
            },
            "release": {"registered_model": f"llama-{name}-distilled"},
        }
    )
    raw = yaml.safe_load((AZURE / name / f"distillation_{name}.yaml").read_text())
    values = [key for key in leaves(raw) if key != "type"]
    assert [key for key in values if not any(note.startswith(key) for note in notes)] == []
    assert any("llama-" in note and "is release.registered_model" in note for note in notes)


def leaves(raw: dict, prefix: str = "") -> list[str]:
    """The dotted keys of all that a job says; of an input, an output and resources their own."""
    found = []
    for key, value in raw.items():
        whole = key in ("training_data", "validation_data", "resources")
        if isinstance(value, dict) and not whole:
            found += leaves(value, f"{prefix}{key}.")
        elif f"{prefix}{key}" != "outputs.registered_model.type":
            found.append(f"{prefix}{key}")
    return found


@pytest.mark.parametrize(
    "dialect",
    [
        {"learning_rate_multiplier": "0.5", "n_epochs": "4", "batch_size": "8"},
        {
            "learning_rate": "0.00001",
            "num_train_epochs": "4",
            "per_device_train_batch_size": "8",
        },
        {"learning_rate": 1e-5, "num_epochs": 4, "batch_size": 8},
    ],
)
def test_the_three_dialects_of_hyperparameters_say_the_same(given, dialect):
    train = given({"hyperparameters": dialect})[0].train
    assert (train.learning_rate, train.num_epochs, train.batch_size) == (1e-5, 4, 8)


def test_two_keys_for_one_knob_are_refused_by_both_names(given):
    for section, ours, twice in [
        ("hyperparameters", "train.num_epochs", {"n_epochs": "2", "num_epochs": "3"}),
        (
            "hyperparameters",
            "train.learning_rate",
            {"learning_rate": 1, "learning_rate_multiplier": 1},
        ),
        (INFERENCE, "generate.max_tokens", {"max_tokens": 5, "max_new_tokens": 5}),
    ]:
        one, two = (f"{section}.{key}" for key in twice)
        with pytest.raises(SpecError, match=f"{one} and {two} both set {ours}; keep one"):
            given({section: twice})


def test_every_setting_of_the_teacher_arrives(given):
    spec = given(
        {
            INFERENCE: {
                "temperature": 0.5,
                "max_new_tokens": 77,
                "top_p": 0.5,
                "frequency_penalty": 1,
                "presence_penalty": "-1",
                "stop": "END",
            },
            REQUESTS: {"request_batch_size": 3, "min_endpoint_success_ratio": 0.25},
            "prompt_settings": {"custom_prompt": "Think {first}.", "max_len_summary": 40},
        }
    )[0]
    asked = spec.generate
    assert (asked.temperature, asked.max_tokens, asked.top_p) == (0.5, 77, 0.5)
    assert (asked.frequency_penalty, asked.presence_penalty, asked.stop) == (1, -1, ("END",))
    assert (asked.runtime.max_concurrency, asked.min_success_ratio) == (3, 0.25)
    assert (asked.instruction, spec.prepare.max_summary_words) == ("Think {first}.", 40)
    assert (asked.reasoning, spec.curate.rationale) == ("none", "keep")
    assert given({f"{INFERENCE}.stop": ["a", "b"]})[0].generate.stop == ("a", "b")


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("NLI", "nli"), ("nlu_qa", "qa"), ("Math", "math"), ("CONVERSATION", "conversation")],
)
def test_a_task_type_is_known_in_any_case(given, theirs, ours):
    assert given({"data_generation_task_type": theirs})[0].prepare.task_type == ours


def test_each_prompt_setting_belongs_to_its_task(given):
    dense = {
        "data_generation_task_type": "SUMMARIZATION",
        "prompt_settings": {"enable_chain_of_density": "True", "enable_chain_of_thought": False},
    }
    spec = given(dense)[0]
    assert (spec.generate.reasoning, spec.curate.rationale) == ("chain_of_density", "drop")
    with pytest.raises(SpecError, match="enable_chain_of_thought: true is for all tasks but"):
        given({"data_generation_task_type": "summarization"})
    with pytest.raises(SpecError, match="enable_chain_of_density: true is for summarization"):
        given({"prompt_settings.enable_chain_of_density": True})
    with pytest.raises(SpecError, match="enable_chain_of_thought: yes please; allowed"):
        given({"prompt_settings.enable_chain_of_thought": "yes please"})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data_generation_type": "data_generation"}, "never available; give the questions"),
        ({"data_generation_task_type": "maths"}, "did you mean 'math'"),
        ({"hyperparameters.n_epoch": "3"}, r"hyperparameters.n_epoch'.*'n_epochs'"),
        ({f"{INFERENCE}.temprature": 1}, r"inference_parameters.temprature'.*'temperature'"),
        ({"teacher_model_settings.endpoint_settings": {}}, "did you mean 'endpoint_request_s"),
        ({"promt_settings": {}}, "'promt_settings'.*'prompt_settings'"),
        ({f"{CONNECTION}.api_keys": SECRET}, "did you mean 'api_key'"),
        ({CONNECTION: SECRET}, "must be a mapping of keys to values, not a text"),
        ({f"{CONNECTION}.type": "custom"}, "allowed: serverless"),
        ({f"{CONNECTION}.endpoint": None}, "endpoint: missing"),
        ({f"{CONNECTION}.endpoint": f"https://me:{SECRET}@host/v1"}, "must not hold credentials"),
        ({"training_data": "azureml:rows:1"}, "download it and give the path"),
        ({"training_data.path": "azureml://datastores/a/paths/b"}, "install azureml-fsspec"),
        ({"validation_data": None}, "validation_data: missing"),
        ({"training_data.type": "mltable"}, "allowed: uri_file"),
        ({"outputs.registered_model.nmae": "x"}, "did you mean 'name'"),
        ({f"{INFERENCE}.temperature": "hot"}, rf"{INFERENCE}.temperature \(generate.temperature\)"),
        ({f"{INFERENCE}.top_p": 2}, rf"{INFERENCE}.top_p \(generate.top_p\): .* \(it is 2\)"),
        ({f"{INFERENCE}.stop": [1]}, rf"{INFERENCE}.stop \(generate.stop.0\)"),
        ({"hyperparameters": {"n_epochs": "many"}}, r"hyperparameters.n_epochs \(train.num_ep"),
        ({"hyperparameters": {"learning_rate_multiplier": "x"}}, "learning_rate_multiplier"),
        ({f"{REQUESTS}.request_batch_size": 0}, rf"{REQUESTS}.request_batch_size \(generate."),
    ],
)
def test_a_mistake_is_named_by_the_key_that_its_user_wrote(given, changes, words):
    with pytest.raises(SpecError, match=words) as raised:
        given(changes)
    assert SECRET not in str(raised.value)


def test_a_file_that_is_not_yaml_is_refused_without_its_words(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(f"type: distillation\napi_key: {SECRET}: [\n")
    with pytest.raises(SpecError, match="is not YAML: line 2, column") as raised:
        load(path)
    assert SECRET not in str(raised.value)


def test_what_changes_nothing_here_is_accepted_with_a_note(given):
    keys = ("$schema", "display_name", "tags", "compute", "properties")
    _, notes = given({key: {"a": "b"} for key in keys})
    for key in (*keys, "description", "experiment_name", "resources"):
        assert f"{key}: accepted and ignored" in notes


def test_a_name_that_is_no_name_here_is_cleaned_and_said(given):
    spec, notes = given({"name": "My job {1}/a" + "x" * 80})
    assert spec.name == ("My-job-1-a" + "x" * 80)[:64]
    assert any("(from My job {1}/a" in note for note in notes)
    assert given({"name": None})[0].name == "llama-math-distilled"


def test_data_is_relative_to_the_job_file_unless_it_is_a_url(given, tmp_path):
    spec, _ = given(
        {"training_data": "rows/*.jsonl", "validation_data": {"path": "abfs://a@b.net/rows.jsonl"}}
    )
    assert spec.prepare.train == str(tmp_path.resolve() / "rows/*.jsonl")
    assert spec.prepare.validation == "abfs://a@b.net/rows.jsonl"
