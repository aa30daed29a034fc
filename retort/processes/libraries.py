"""How a process imports the heavy libraries, and the device that it computes on."""

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# transformers and vLLM import these wherever they are installed, for functions that Retort never
# calls (assisted generation, detection losses, audio): a sixth of all modules of such a process.
UNUSED = ("scipy", "sklearn")


@contextmanager
def lean_imports() -> Iterator[None]:
    """Makes the imports of torch, transformers and vLLM inside cheaper: about 2 of 7 CPU seconds.

    They find no `UNUSED` package (afterwards it can be imported as always), so import what needs
    one before. The garbage collector is off: the imports make millions of objects that stay, and
    looking through them again and again takes longer than a third of the imports.
    """
    _obey_offline()
    hidden = [name for name in UNUSED if name not in sys.modules]
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
