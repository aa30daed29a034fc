"""A job file as Azure ML takes it, with every kind of key; and where real ones may lie."""

import copy
from pathlib import Path

import pytest
import yaml

from retort.spec import load
from retort.spec.azure import KEY_ENV

CONNECTION = "teacher_model_endpoint_connection"

JOB = yaml.safe_load("""
type: distillation
name: Distillation-math-llama
description: Distill a student
experiment_name: Distillation-Math
data_generation_type: label_generation
data_generation_task_type: math
training_data: {type: uri_file, path: ./train_math.jsonl}
validation_data: {type: uri_file, path: ./validation_math.jsonl}
teacher_model_endpoint_connection:
  type: serverless
  name: Meta-Llama-3-1-405B-Instruct-vkn
  endpoint: https://Meta-Llama-3-1-405B-Instruct-vkn.westus3.models.ai.azure.com/chat/completions
  api_key: EXAMPLE_API_KEY
student_model: azureml://registries/azureml-meta/models/Meta-Llama-3.1-8B-Instruct/versions/2
outputs:
  registered_model: {type: mlflow_model, name: llama-math-distilled}
teacher_model_settings:
  inference_parameters: {temperature: 0.1, max_tokens: 1024, top_p: 0.95}
  endpoint_request_settings: {request_batch_size: 10, min_endpoint_success_ratio: 0.7}
prompt_settings: {enable_chain_of_thought: true}
hyperparameters: {learning_rate_multiplier: "0.2", n_epochs: "5", batch_size: "2"}
resources: {instance_type: Standard_D2_v2}
""")


def without_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment as it is without a key, now and after the test."""
    monkeypatch.setenv(KEY_ENV, "to be removed")
    monkeypatch.delenv(KEY_ENV)


def load_with(
    folder: Path,
    changes: dict | None = None,
    overrides=(),
    teacher=None,
    student="org/student",
):
    """Loads the job from a folder, dotted keys of it changed; None takes a key out."""
    job = copy.deepcopy(JOB)
    for dotted, value in (changes or {}).items():
        *parents, last = dotted.split(".")
        at = job
        for parent in parents:
            at = at.setdefault(parent, {})
        at[last] = value
        if value is None:
            del at[last]
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(job, sort_keys=False))
    return load(path, list(overrides), teacher, student)
