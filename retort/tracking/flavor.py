"""The files by which MLflow loads and serves a released student: flavours, signature, requirements.

They are what `mlflow.transformers.save_model(..., task="llm/v1/chat")` writes; that function would
also load the weights and copy them. Source: https://mlflow.org/docs/latest/ml/model (MLmodel).
"""

import json
import platform
from pathlib import Path
from typing import Any

import yaml

from retort.processes import machine

CHAT_TASK = "llm/v1/chat"
MLMODEL, REQUIREMENTS, PYTHON_ENV = "MLmodel", "requirements.txt", "python_env.yaml"
EXAMPLE, SERVED_EXAMPLE = "input_example.json", "serving_input_example.json"
# Where the transformers flavour looks for the tokenizer's files.
TOKENIZER = "components/tokenizer"
LIBRARIES = ("mlflow", "torch", "transformers", "accelerate")
CHAT = {"messages": [{"role": "user", "content": "What can you do?"}], "max_tokens": 64}


def files(name: str, weights: str, folder: Path) -> dict[str, bytes]:
    """Returns the files by their names, with copies of the tokenizer's.

    `name` is the model's. `weights` is its Hugging Face folder, relative to these files or an
    absolute path; `folder` is the same folder, to be read now.
    """
    from mlflow.models import Model, ModelSignature
    from mlflow.types import llm

    model = Model(
        signature=ModelSignature(llm.CHAT_MODEL_INPUT_SCHEMA, llm.CHAT_MODEL_OUTPUT_SCHEMA),
        saved_input_example_info={
            "artifact_path": EXAMPLE,
            "type": "json_object",
            "serving_input_path": SERVED_EXAMPLE,
        },
        metadata={"task": CHAT_TASK},
    )
    model.add_flavor(
        "python_function",
        loader_module="mlflow.transformers",
        python_version=platform.python_version(),
        env={"virtualenv": PYTHON_ENV},
    )
    model.add_flavor("transformers", **_transformers(name, weights))
    versions = {each: str(machine.version_of(each)).partition("+")[0] for each in LIBRARIES}
    environment = {"python": platform.python_version(), "dependencies": [f"-r {REQUIREMENTS}"]}
    tokenizer = {
        f"{TOKENIZER}/{path.name}": path.read_bytes()
        for path in sorted(folder.iterdir())
        if path.is_file() and _is_tokenizers(path.name)
    }
    return tokenizer | {
        MLMODEL: model.to_yaml().encode(),
        REQUIREMENTS: "".join(f"{each}=={v}\n" for each, v in versions.items()).encode(),
        PYTHON_ENV: yaml.safe_dump(environment).encode(),
        EXAMPLE: json.dumps(CHAT).encode(),
        SERVED_EXAMPLE: json.dumps(CHAT).encode(),
    }


def _is_tokenizers(name: str) -> bool:
    """Whether a file of a Hugging Face folder may belong to its tokenizer."""
    is_weights = ".safetensors" in name
    return not is_weights and name not in ("README.md", "config.json", "generation_config.json")


def _transformers(name: str, weights: str) -> dict[str, Any]:
    """Returns the transformers flavour; its Auto classes read the folder's own config."""
    return {
        "transformers_version": machine.version_of("transformers"),
        "code": None,
        "task": "text-generation",
        "inference_task": CHAT_TASK,
        "instance_type": "TextGenerationPipeline",
        "framework": "pt",
        "torch_dtype": None,
        "source_model_name": name,
        "model_binary": weights,
        "pipeline_model_type": "AutoModelForCausalLM",
        "components": ["tokenizer"],
        "tokenizer_type": "AutoTokenizer",
    }
