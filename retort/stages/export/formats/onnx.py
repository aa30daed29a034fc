"""ONNX for onnxruntime-genai, written by that package's own model builder.

`int8` and `int4` are weights in blocks of 32 input channels (MatMulNBits), and activations in int8
as they come. In `int4` some weights have 8 bits: the head, embeddings tied to it (4 bits there cost
more quality than all the rest), and in some layers what llama.cpp's mixtures promote, too: the
projections of attention's inputs and the last one of the feed-forward. Other embeddings stay in
float32.

Note: importance is not used. The builder knows none, and with scales by a search that weighs errors
int4 diverged more (2.1e-4 nats a token on the quickstart's teacher) than with plain ones (9.8e-5).
"""

import contextlib
import importlib.util
import io
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from retort.errors import SpecError
from retort.processes import disk
from retort.records import JsonObject, Message
from retort.stages.export.formats import Student
from retort.stages.export.formats._files import copy_small_files
from retort.store import model_folder

QUANTIZATIONS = ("fp32", "int8", "int4")
WEIGHS = ()
ENGINE = "onnx"

# The families that the builder writes as transformers computes them, with their kinds of rotary
# embeddings. It writes others without an error, and wrongly: the tests compare the logits.
ROPES = {
    "GemmaForCausalLM": ("default",),
    "Gemma2ForCausalLM": ("default",),
    "Gemma3ForCausalLM": ("default",),
    "GraniteForCausalLM": ("default",),
    "LlamaForCausalLM": ("default", "llama3"),
    "MistralForCausalLM": ("default", "linear"),
    "Phi3ForCausalLM": ("default", "longrope"),
    "Qwen2ForCausalLM": ("default", "linear"),
    "Qwen3ForCausalLM": ("default", "linear"),
    "SmolLM3ForCausalLM": ("default",),
}
WIDER = "resize_token_embeddings of transformers makes it larger"
PACKAGES = ("onnxruntime_genai", "onnx", "onnx_ir", "onnxruntime")
# The builder's options, as KEY=VALUE. A cache of a window's size makes the runtime refuse chats
# that are shorter than the window.
ALWAYS = ["hf_token=false", "windowed_kv_cache=false"]
# The builder's options for each quantization.
OPTIONS = {
    "fp32": [],
    "int8": [],
    "int4": ["matmul_mixed_precision=last_matmul:int8,mixed_layers:int8"],
}
# The names of an 8-bit head that the builder gives to tied embeddings, and those that it stores.
HEAD = {
    "lm_head.MatMul.weight_Q8G32": "lm_head.MatMul.weight_Q8",
    "lm_head.MatMul.weight_scale": "lm_head.MatMul.weight_scales",
}


def check(student: Path, quantization: str) -> None:
    """Raises `SpecError` where the builder cannot build a model, or a package is missing."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise SpecError(
            f"export onnx:{quantization} needs the package {missing[0]}; "
            "pip install 'retort[export]'"
        )
    config = model_folder.text_config(student)
    family = (config.get("architectures") or ["?"])[0]
    rope: JsonObject = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope = rope.get("full_attention", rope)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    cause = None
    if family not in ROPES:
        cause = f"the family is none of {', '.join(ROPES)}"
    elif kind not in ROPES[family]:
        cause = f"its rotary embedding is {kind}, and not {' or '.join(ROPES[family])}"
    elif config["vocab_size"] in _widths(config):
        cause = f"it takes a layer for the head that is as wide as the vocabulary ({WIDER})"
    if cause:
        raise SpecError(
            f"export onnx:{quantization}: the model builder of onnxruntime-genai does not write "
            f"{family} ({student}) rightly: {cause}; leave this format out"
        )


def _widths(config: JsonObject) -> set[int]:
    """Returns how many outputs the linear layers of a model may have, the head's apart."""
    heads, inner = config["num_attention_heads"], config["intermediate_size"]
    pairs = config.get("num_key_value_heads") or heads
    size = config.get("head_dim") or config["hidden_size"] // heads
    attention = {heads * size, pairs * size, (heads + 2 * pairs) * size, config["hidden_size"]}
    return {*attention, inner, 2 * inner}


def write(student: Student, quantization: str, out: Path) -> JsonObject:
    """Writes model.onnx, its data and genai_config.json beside the student's tokenizer.

    The builder writes the tokenizer over its copy: as transformers understands it, which for some
    families is not what the file says.
    """
    import onnxruntime_genai

    copy_small_files(student.folder, out)
    with disk.temporary_folder() as scratch, _quiet():
        _build(student.folder, quantization, out, scratch)
    if quantization == "int4":
        _rename_head(out / "model.onnx")
    return {"builder": f"onnxruntime-genai {onnxruntime_genai.__version__}"}


def _build(source: Path, quantization: str, out: Path, cache: Path) -> None:
    from onnxruntime_genai.models import builder

    where = (None, str(source), str(out), quantization, "cpu", str(cache))
    options = builder.parse_extra_options(*where, [*ALWAYS, *OPTIONS[quantization]])
    _complete(options["hf_details"]["hf_config"])
    builder.create_model(*where, **options)


def _rename_head(path: Path) -> None:
    """Gives embeddings that are tied to the head the names of what is stored."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    stored = {each.name for each in model.graph.initializer}
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name not in stored and HEAD.get(name) in stored:
                node.input[index] = HEAD[name]
    onnx.save(model, path)


def _complete(config: Any) -> None:
    """Writes into a configuration what the builder reads there and transformers no longer writes:
    which layers attend to a window only, and the old names of some rotary embeddings."""
    if getattr(config, "sliding_window", None) and not getattr(config, "layer_types", None):
        config.layer_types = ["sliding_attention"] * config.num_hidden_layers
    rope = config.rope_parameters
    if "full_attention" in rope:
        config.rope_local_base_freq = rope["sliding_attention"]["rope_theta"]
        config.rope_parameters = rope = dict(rope["full_attention"])
    rope["type"] = rope["rope_type"]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the builder's prints, bars and log lines away, and its folder out of `sys.path`."""
    path, level = list(sys.path), logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(level)
        sys.path[:] = path


def token_ids(out: Path, texts: list[str]) -> list[list[int]] | None:
    """Returns the ids of onnxruntime-genai's own tokenizer; None where it cannot read this one."""
    tokenizer = _tokenizer(out)
    return tokenizer and [tokenizer.encode(text).tolist() for text in texts]


def prompts(out: Path, chats: list[list[Message]]) -> list[str] | None:
    """Returns the chats as the runtime renders them; None where it cannot read the tokenizer."""
    tokenizer = _tokenizer(out)
    return tokenizer and [
        tokenizer.apply_chat_template(json.dumps(chat), add_generation_prompt=True)
        for chat in chats
    ]


def _tokenizer(out: Path) -> Any:
    import onnxruntime_genai

    described = json.loads((out / "tokenizer.json").read_text(encoding="utf-8"))
    if described["model"]["type"] == "WordLevel":  # read with an error, or as ids of -1
        return None
    try:
        return onnxruntime_genai.Tokenizer(onnxruntime_genai.Config(str(out)))
    except RuntimeError:
        return None
