"""Facts of a model folder, read without loading the model: digest, token map, template, size.

Only JSON files and safetensors headers are read, which is cheap enough to do before every job.
"""

import functools
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from retort.errors import SpecError, did_you_mean
from retort.records import JsonObject
from retort.spec import catalogue

TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "chat_template*", "*.model", "*.txt")
SMALL_FILES = ["*.json", "*.jinja", "*.model", "tokenizer*"]
DTYPE_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2, "U8": 1, "I8": 1}
SAMPLED_BLOCKS, BLOCK_BYTES = 64, 1 << 20


def locate(model: str, where: str) -> Path:
    """Returns the folder with a model's small files (configuration, tokenizer, template).

    Those of a hub id are fetched, or found in the local cache. `where` names the knob in errors.
    Raises `SpecError` when there is neither such a folder nor such a model.
    """
    path = Path(model)
    if path.is_dir():
        return path
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        near = did_you_mean(Path(model).name, catalogue.models())
        raise SpecError(
            f"{where}: no folder {model}, and no known name{near}; give a model folder, a hub id "
            "(org/name) or a name of the catalogue (docs/teacher.md)"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=SMALL_FILES))
    except Exception as error:  # the hub's errors: offline, gated, unknown, no network
        raise SpecError(
            f"{where}: '{model}' is neither a folder here nor a model that can be fetched "
            f"({type(error).__name__}); give the path of a folder, or check the id and the network"
        ) from error


def check(model: str, where: str) -> Path:
    """Returns a model's folder, which has all files that a run needs.

    Raises `SpecError` that names the missing file.
    """
    folder = locate(model, where)
    if not (folder / "config.json").is_file():
        raise SpecError(f"{where}: {folder} has no config.json; it is not a model folder")
    read_config(folder)
    if not any((folder / n).is_file() for n in ("tokenizer.json", "tokenizer.model")):
        raise SpecError(
            f"{where}: {folder} has no tokenizer (tokenizer.json); "
            "save one there with tokenizer.save_pretrained(folder)"
        )
    if chat_template(folder) is None:
        raise SpecError(
            f"{where}: the tokenizer in {folder} has no chat template; "
            "use an instruction-tuned model, or add a chat_template.jinja"
        )
    if Path(model).is_dir() and not list(folder.glob("*.safetensors")):
        raise SpecError(f"{where}: {folder} has no weights (*.safetensors)")
    return folder


def digest(model: str, where: str) -> str:
    """Returns a name for a model's content, the same wherever its folder is.

    Of a hub model it is the id and commit. Of a folder it is the sha256 of its files; of files over
    64 MiB only the size and 64 evenly spaced blocks of 1 MiB are read.
    """
    folder = locate(model, where)
    if not Path(model).is_dir():
        return f"{model}@{folder.name}"
    found = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        if path.suffix in (".json", ".jinja", ".safetensors", ".model"):
            found.update(f"{path.name}:{path.stat().st_size}:".encode())
            for block in _blocks(path):
                found.update(block)
    return found.hexdigest()


def _blocks(path: Path) -> Iterator[bytes]:
    size = path.stat().st_size
    with path.open("rb") as stream:
        if size <= SAMPLED_BLOCKS * BLOCK_BYTES:
            yield stream.read()
            return
        for index in range(SAMPLED_BLOCKS):
            stream.seek((size - BLOCK_BYTES) * index // (SAMPLED_BLOCKS - 1))
            yield stream.read(BLOCK_BYTES)


def read_config(folder: Path) -> JsonObject:
    """Returns a model's config.json. Raises `SpecError` where it is missing or no JSON."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SpecError(f"{path} is missing; {folder} is not a model folder") from None
    except ValueError as error:
        raise SpecError(f"{path} is no JSON ({error}); copy the model's folder again") from None
    if not isinstance(config, dict):
        raise SpecError(f"{path} is no JSON object; copy the model's folder again")
    return config


def text_config(folder: Path) -> JsonObject:
    """Returns the part of config.json on the text model, for models that also have others."""
    config = read_config(folder)
    return {**config, **(config.get("text_config") or {})}


@functools.lru_cache(maxsize=16)
def _token_map(path: str, modified: float) -> tuple[str, int]:
    from tokenizers import Tokenizer

    vocabulary = Tokenizer.from_file(path).get_vocab(with_added_tokens=True)
    text = json.dumps(sorted(vocabulary.items(), key=lambda item: item[1]))
    return hashlib.sha256(text.encode()).hexdigest(), max(vocabulary.values()) + 1


def token_map(folder: Path) -> tuple[str, int]:
    """Returns the sha256 of the token -> id map, and the number of ids it spans.

    Two models can share token ids exactly when the hashes agree, whatever their padded
    vocabulary sizes are. Raises `SpecError` when there is no tokenizer.json.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise SpecError(f"{folder} has no tokenizer.json, which comparing token maps needs")
    return _token_map(str(path), path.stat().st_mtime)


def chat_template(folder: Path) -> str | None:
    """Returns the chat template that a tokenizer folder carries."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    settings = folder / "tokenizer_config.json"
    if not settings.is_file():
        return None
    template = json.loads(settings.read_text(encoding="utf-8")).get("chat_template")
    return template if isinstance(template, str) else None


def template_sha256(folder: Path) -> str:
    """Returns the sha256 of the chat template, for comparing capture, training and evaluation."""
    return hashlib.sha256((chat_template(folder) or "").encode()).hexdigest()


def copy_tokenizer(folder: Path, to: Path) -> None:
    """Copies a tokenizer's own files, template included, so that nothing of it can drift."""
    for pattern in TOKENIZER_FILES:
        for path in folder.glob(pattern):
            shutil.copy(path, to)


def stored_dtype(model: str) -> str:
    """Returns the precision of a model's stored weights; "auto" where its config names none."""
    config = read_config(locate(model, "model"))
    return str(config.get("dtype") or config.get("torch_dtype") or "auto")


def cache_folder() -> Path:
    """Returns this user's folder for files that can be made again: compiled kernels, and new
    databases."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "retort"


def length_changes_answers(folder: Path) -> bool:
    """Whether the length a model is opened with changes its answers (long rope)."""
    return _rope(folder)[0] in ("longrope", "su", "dynamic")


def short_length(folder: Path) -> int | None:
    """Returns the length up to which a long-rope model uses its short factors; None for others.

    transformers chooses the factors by the length of the chat, vllm by the length the model was
    opened with. Opened with more than this length, the two disagree on short chats.
    """
    kind, config = _rope(folder)
    length = config.get("original_max_position_embeddings")
    return int(length) if kind in ("longrope", "su") and length else None


def _rope(folder: Path) -> tuple[str, JsonObject]:
    """Returns the kind of position encoding, and the settings of the model and of its rope."""
    config = read_config(folder)
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return str(rope.get("rope_type") or rope.get("type")), {**config, **rope}


def size(folder: Path) -> JsonObject:
    """Returns `parameters` (a count) and `weights_bytes` (bytes in memory) of a model's weights."""
    parameters = weights = 0
    for _, shape, dtype in tensors(folder):
        count = math.prod(shape)
        parameters += count
        weights += count * DTYPE_BYTES.get(dtype, 1)
    return {"parameters": parameters, "weights_bytes": weights}


def tensors(folder: Path) -> Iterator[tuple[str, list[int], str]]:
    """Yields the name, shape and precision of each stored weight."""
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length))
        for name, tensor in header.items():
            if name != "__metadata__":
                yield name, tensor["shape"], tensor["dtype"]
