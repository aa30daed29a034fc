"""ONNX for onnxruntime-genai, written by that package's own model builder.

`int8` and `int4` are weights in blocks of 32 input channels (MatMulNBits). The head of `int4` has 8
bits, and so have tied embeddings: 4 bits there cost more quality than all the rest.
"""

import contextlib
import importlib.util
import io
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from retort.errors import SpecError
from retort.processes import disk
from retort.stages.export.formats import Student
from retort.stages.export.formats._files import copy_small_files
from retort.store import model_folder

QUANTIZATIONS = ("fp32", "int8", "int4")
WEIGHS = ()
ENGINE = "onnx"

PACKAGES = ("onnxruntime_genai", "onnx", "onnx_ir", "onnxruntime")
# The builder's options for each quantization, as KEY=VALUE.
OPTIONS = {
    "fp32": [],
    "int8": [],
    "int4": ["algo_config=k_quant", "matmul_mixed_precision=last_matmul:int8"],
}


def check(student: Path, quantization: str) -> None:
    """Raises `SpecError` where the builder cannot build a model, or a package is missing."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise SpecError(
            f"export onnx:{quantization} needs the package {missing[0]}; "
            "pip install 'retort[export]'"
        )
    config = model_folder.read_config(student)
    family = (config.get("architectures") or ["?"])[0]
    if family not in _families():
        raise SpecError(
            f"export onnx:{quantization}: the model builder of onnxruntime-genai does not know "
            f"{family} ({student}); leave this format out, or take a student of another family"
        )


def _families() -> list[str]:
    """Returns the architectures that the builder writes, read from its file: importing it costs
    seconds."""
    found = importlib.util.find_spec("onnxruntime_genai")
    assert found and found.origin
    source = Path(found.origin).parent / "models" / "builder.py"
    names = re.findall(r'architectures\[0\] == "(\w+ForCausalLM)"', source.read_text("utf-8"))
    return sorted(set(names))


def write(student: Student, quantization: str, out: Path) -> dict[str, Any]:
    """Writes model.onnx, its data and genai_config.json beside the student's tokenizer."""
    import onnxruntime_genai

    with disk.temporary_folder() as scratch, _quiet():
        from onnxruntime_genai.models import builder

        where = (None, str(student.folder), str(out), quantization, "cpu", str(scratch / "cache"))
        options = builder.parse_extra_options(*where, ["hf_token=false", *OPTIONS[quantization]])
        builder.create_model(*where, **options)
    copy_small_files(student.folder, out)
    return {"builder": f"onnxruntime-genai {onnxruntime_genai.__version__}"}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the builder's prints, bars and log lines away, and its folder out of `sys.path`."""
    path, level = list(sys.path), logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(level)
        sys.path[:] = path


def token_ids(out: Path, texts: list[str]) -> list[list[int]] | None:
    """Returns the ids of onnxruntime-genai's own tokenizer; None where it cannot read this one."""
    import onnxruntime_genai

    try:
        tokenizer = onnxruntime_genai.Tokenizer(onnxruntime_genai.Model(str(out)))
    except RuntimeError:
        return None
    return [tokenizer.encode(text).tolist() for text in texts]
