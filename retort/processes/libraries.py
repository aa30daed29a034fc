"""How a process imports the heavy libraries, and the device that it computes on."""

import ast
import functools
import gc
import importlib
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# transformers and vLLM import these wherever they are installed, for functions that Retort never
# calls (assisted generation, detection losses, audio): a sixth of all modules of such a process.
UNUSED = ("scipy", "sklearn")
# What loads and runs a model with transformers.
MODELS = (
    "torch",
    "transformers.masking_utils",
    "transformers.modeling_layers",
    "transformers.models.auto.auto_factory",
)
# The CPU seconds that imports took in the process of which this one is a fork.
inherited_seconds = 0.0


@contextmanager
def lean_imports(*unused: str) -> Iterator[None]:
    """Makes the imports of torch, transformers and vLLM inside cheaper: about 2 of 7 CPU seconds.

    They find no `UNUSED` package, nor those that are named (afterwards it can be imported as
    always), so import what needs one before. A process in which transformers found no torch can
    load tokenizers, in half the time and less memory, and never a model. The garbage collector is
    off: the imports make millions of objects that stay, and looking through them again and again
    takes longer than a third of the imports.
    """
    _obey_offline()
    hidden = [name for name in (*UNUSED, *unused) if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: "not installed"
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
        if collects:
            gc.enable()


def import_all(*names: str) -> None:
    """Imports modules within `lean_imports`."""
    with lean_imports():
        for name in names:
            importlib.import_module(name)


def import_torch() -> None:
    """Imports what loads and trains a model; what else such a process needs is little."""
    import_all(*MODELS, "torch.distributed.checkpoint.state_dict")


def parse_one_at_a_time() -> None:
    """Lets no two threads of this process parse Python at once, where Python cannot do that.

    Before 3.11.8 and 3.12.2 a parse counts its depth in a variable of all threads: where the
    garbage collector lets another thread parse within it, it ends with SystemError (CPython's issue
    106905). Prefect, numpy and `inspect` parse, and a flow has threads.
    """
    if (3, 11, 8) <= sys.version_info[:3] < (3, 12) or sys.version_info[:3] >= (3, 12, 2):
        return
    if hasattr(ast.parse, "__wrapped__"):
        return
    lock, parse = threading.RLock(), ast.parse

    @functools.wraps(parse)
    def one_at_a_time(*arguments: Any, **options: Any) -> Any:
        with lock:
            return parse(*arguments, **options)

    ast.parse = one_at_a_time  # `ast.literal_eval` and `inspect` look it up there


def resolve_device(name: str) -> str:
    """Returns torch's name of a device, "auto" decided: cuda where there is a GPU, else cpu."""
    if name != "auto":
        return name
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def stay_offline(model: str) -> None:
    """Keeps Hugging Face's libraries off the network where the model is a folder of this machine.

    Call it before a model is loaded.
    """
    if os.path.isdir(model):
        os.environ["HF_HUB_OFFLINE"] = "1"
        _obey_offline()


def _obey_offline() -> None:
    """Has huggingface_hub heed HF_HUB_OFFLINE=1 where it was imported before that was set."""
    hub = sys.modules.get("huggingface_hub.constants")
    if hub and os.environ.get("HF_HUB_OFFLINE") == "1":
        vars(hub)["HF_HUB_OFFLINE"] = True
