"""llama.cpp's own quantizer, through the package llama-cpp-python: the K and IQ quantizations."""

import ctypes
from pathlib import Path

from retort.errors import StageError
from retort.stages.export.formats import Importance


class _Entry(ctypes.Structure):
    """llama_model_imatrix_data of llama.h; a list of them ends with one without a name."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        ("data", ctypes.POINTER(ctypes.c_float)),
        ("size", ctypes.c_size_t),
    ]


def requantize(whole: Path, path: Path, quantization: str, importance: Importance) -> None:
    """Writes a file of single precision anew; `importance` is by the tensors' names in GGUF.

    Raises `StageError` where llama.cpp refuses.
    """
    import gguf
    import llama_cpp

    entries = (_Entry * (len(importance) + 1))()
    kept = {name: values.astype("float32", order="C") for name, values in importance.items()}
    for entry, (name, values) in zip(entries, kept.items(), strict=False):
        entry.name, entry.size = name.encode(), values.size
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = int(gguf.LlamaFileType[f"MOSTLY_{quantization.upper()}"])
    if kept:
        settings.imatrix = ctypes.cast(entries, dict(settings._fields_)["imatrix"])
    llama_cpp.llama_backend_init()
    code = llama_cpp.llama_model_quantize(str(whole).encode(), str(path).encode(), settings)
    if code:
        raise StageError(f"llama.cpp cannot write {path.name} as {quantization} (code {code})")
