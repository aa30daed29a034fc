"""Retort: prompts, a teacher and a student in; a smaller model and an honest report out.

Importing this package is light: nothing heavy (torch, vllm, mlflow, prefect) is touched.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retort.client import DistillationJob, MLClient, RetortClient

__version__ = "0.1.0"
__all__ = ["DistillationJob", "MLClient", "RetortClient"]


def __getattr__(name: str) -> Any:
    """Loads the client when it is first asked for."""
    if name in __all__:
        from retort import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
