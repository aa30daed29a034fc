"""GGUF, the format of llama.cpp: one file, which ollama and LM Studio load, too.

Up to q4_0 all is written here, by numpy. The K and IQ quantizations are llama.cpp's own: they need
the package llama-cpp-python, which compiles it.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from retort.engines._gguf_header import read_header
from retort.errors import SpecError
from retort.records import JsonObject, Message
from retort.stages.export.formats import Importance, Student
from retort.stages.export.formats._files import copy_small_files
from retort.stages.export.formats._gguf_blocks import (
    Q6_BLOCK,
    Bytes,
    Floats,
    quantize_q4_0,
    quantize_q6_k,
    weighted_error,
)
from retort.stages.export.formats._gguf_families import (
    Family,
    convert,
    extra_tensors,
    plainly_fits,
    read_family,
    write_numbers,
)
from retort.stages.export.formats._gguf_vocabulary import read_vocabulary, write_vocabulary

OURS = ("f32", "f16", "q8_0", "q4_0")
LLAMA_CPP = (
    *("q2_k", "q3_k_s", "q3_k_m", "q3_k_l", "q4_k_s", "q4_k_m", "q5_k_s", "q5_k_m", "q6_k"),
    *("iq2_xxs", "iq2_xs", "iq2_s", "iq2_m", "iq3_xxs", "iq3_xs", "iq3_s", "iq3_m"),
    *("iq4_nl", "iq4_xs"),
)
QUANTIZATIONS = (*OURS, *LLAMA_CPP)
WEIGHS = ("q4_0", *LLAMA_CPP)
ENGINE = "llamacpp"
FILE = "model.gguf"


def check(student: Path, quantization: str) -> None:
    """Raises `SpecError` where llama.cpp computes no such family, or a package is missing."""
    for package in ("gguf", "xllamacpp"):
        if not find_spec(package):
            raise SpecError(
                f"the format gguf needs the package {package}: pip install 'retort[export]'"
            )
    if quantization in LLAMA_CPP and not find_spec("llama_cpp"):
        raise SpecError(
            f"gguf:{quantization} is written by llama.cpp itself, from the package "
            "llama-cpp-python, which needs a C compiler: pip install 'retort[export-k]'; without "
            f"it there are {', '.join(OURS)}"
        )
    if not plainly_fits(student):
        read_family(student)
    if not (student / "tokenizer.json").is_file():
        raise SpecError(
            f"{student} has no tokenizer.json, from which the format gguf takes the tokens; save "
            "it with AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )


def write(student: Student, quantization: str, out: Path) -> JsonObject:
    """Writes the GGUF file and the student's tokenizer; returns facts about the file."""
    family = read_family(student.folder)
    copy_small_files(student.folder, out)
    if quantization in OURS:
        facts = _write_file(family, student, quantization, out / FILE)
    else:
        from retort.stages.export.formats._gguf_llama_cpp import requantize

        whole = out / "float32.gguf"
        facts = _write_file(family, student, "f32", whole)
        named = {_gguf_name(family, name): w for name, w in student.importance.items()}
        requantize(whole, out / FILE, quantization, {k: w for k, w in named.items() if k})
        whole.unlink()
    return {**facts, **_file_facts(out / FILE)}


def token_ids(out: Path, texts: list[str]) -> list[list[int]] | None:
    """Returns the ids that llama.cpp's own tokenizer gives; None where it has no such tokenizer."""
    from retort.engines._llama_server import LlamaServer

    if not read_vocabulary(out).readable:
        return None
    with closing(LlamaServer(out / FILE)) as server:
        return [server.tokenize(text) for text in texts]


def prompts(out: Path, chats: list[list[Message]]) -> list[str] | None:
    """Returns the chats as llama.cpp renders them by the file's own template."""
    from retort.engines._llama_server import LlamaServer

    with closing(LlamaServer(out / FILE)) as server:
        return [server.render(chat) for chat in chats]


def _write_file(family: Family, student: Student, quantization: str, path: Path) -> JsonObject:
    """Writes a file of one of our own quantizations."""
    import gguf

    kind = "ALL_F32" if quantization == "f32" else f"MOSTLY_{quantization.upper()}"
    writer = gguf.GGUFWriter(path, family.architecture, use_temp_file=True)
    writer.add_file_type(gguf.LlamaFileType[kind])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    write_numbers(writer, family)
    vocabulary = write_vocabulary(writer, student.folder, family.config.vocab_size)
    errors = np.zeros(3)
    for name, values in extra_tensors(family).items():
        writer.add_tensor(name, values)
    for name, values in _tensors(family, student.folder):
        place, importance = _gguf_name(family, name), _importance(student.importance, name)
        assert place, f"{name} has no name in GGUF"
        dtype = _type_of(family, place, values, quantization)
        data = _quantize(values, dtype, importance)
        if importance is not None and dtype == "Q4_0":
            errors += _errors(values, data, importance)
        writer.add_tensor(place, data, raw_dtype=gguf.GGMLQuantizationType[dtype])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    facts = {"context": family.context, "tokenizer": vocabulary.pre or vocabulary.model}
    facts |= {"reads_text": vocabulary.readable, "reads_otherwise": vocabulary.unlike}
    if errors[0]:
        facts["error_without_importance"], facts["error"] = (errors[1:] / errors[0]).tolist()
    return facts


def _tensors(family: Family, folder: Path) -> Iterator[tuple[str, Floats]]:
    """Yields a model folder's tensors, as llama.cpp's graph wants them."""
    from safetensors import safe_open

    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise SpecError(f"{folder} has no weights (*.safetensors)")
    for path in paths:
        with safe_open(path, framework="pt") as file:
            for name in sorted(file.keys()):
                if name.endswith((".attn.bias", ".attn.masked_bias", "rotary_emb.inv_freq")):
                    continue  # constants that old checkpoints carry
                if name == "lm_head.weight" and family.config.tie_word_embeddings:
                    continue
                yield name, convert(family, name, file.get_tensor(name).float().numpy())


def _gguf_name(family: Family, name: str) -> str | None:
    """Returns what GGUF calls a tensor, or a layer's weight."""
    import gguf

    architecture = next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == family.architecture)
    names = gguf.get_tensor_name_map(architecture, family.config.num_hidden_layers)
    whole = name if name.endswith((".weight", ".bias")) else f"{name}.weight"
    found: str | None = names.get_name(whole, try_suffixes=(".weight", ".bias"))
    return found


def _importance(importance: Importance, name: str) -> Floats | None:
    return importance.get(name.removesuffix(".weight"))


def _type_of(family: Family, place: str, values: Floats, quantization: str) -> str:
    """Returns a tensor's type, which is the one that llama.cpp's own quantizer chooses: what the
    head reads is kept at six or eight bits."""
    if values.ndim < 2 or place == "position_embd.weight" or quantization == "f32":
        return "F32"
    width = values.shape[-1]
    if quantization == "f16" or width % 32:
        return "F16"
    tied = family.config.tie_word_embeddings
    if quantization == "q4_0" and place == ("token_embd.weight" if tied else "output.weight"):
        return "Q8_0" if width % Q6_BLOCK else "Q6_K"
    return quantization.upper()


def _quantize(values: Floats, dtype: str, importance: Floats | None) -> Floats | Bytes:
    import gguf

    if dtype == "Q4_0":
        return quantize_q4_0(values, importance)
    if dtype == "Q6_K":
        return quantize_q6_k(values, importance)
    data: Bytes = gguf.quants.quantize(values, gguf.GGMLQuantizationType[dtype])
    return data


def _errors(values: Floats, data: Floats | Bytes, importance: Floats) -> list[float]:
    """Returns the weighted sum of squares, and the weighted errors without and with importance."""
    import gguf

    kind = gguf.GGMLQuantizationType.Q4_0
    plain = gguf.quants.dequantize(quantize_q4_0(values), kind)
    found, zeros = gguf.quants.dequantize(data, kind), np.zeros_like(values)
    return [weighted_error(values, other, importance) for other in (zeros, plain, found)]


def _file_facts(path: Path) -> JsonObject:
    """Returns a file's size, and how many of its tensors have which type."""
    types = Counter(read_header(path).types.values())
    return {"bytes": path.stat().st_size, "tensors": dict(sorted(types.items()))}
