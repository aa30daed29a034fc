"""The connection to a Ray cluster, and what an actor takes of it. Without a cluster in the spec no
process imports Ray.
"""

import importlib.util
import logging
import os
import signal
import socket
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retort.errors import SpecError, StageError

# Where Ray notes the cluster of a machine; a child's own temporary folder is not the place.
RAY_FOLDER, DEFAULT_FOLDER = "RAY_TMPDIR", "/tmp"
ANSWER_SECONDS = 10.0


class LostNodeError(StageError):
    """A node that trained with others is gone. A new try continues, on the nodes that are there."""

    transient = True


@dataclass(frozen=True)
class Cluster:
    """A cluster's address, and what each actor takes; `num_gpus` None: one where there are any."""

    address: str
    num_gpus: float | None = None
    resources: dict[str, float] = field(default_factory=dict)

    def gpus(self, ray: Any) -> float:
        """Returns the GPUs of an actor."""
        if self.num_gpus is not None:
            return self.num_gpus
        return 1.0 if ray.cluster_resources().get("GPU", 0) else 0.0


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's text; Ray's go on with tracebacks."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def connect(address: str) -> Any:
    """Returns the package ray, connected to a cluster.

    Raises `SpecError` where ray is not installed, no cluster answers, or it runs other versions.
    """
    if importlib.util.find_spec("ray") is None:
        raise SpecError(
            "cluster.ray: ray is not installed here; pip install 'retort[cluster]', the same "
            "version as the cluster's, or leave cluster.ray out"
        )
    import ray

    if not ray.is_initialized():
        os.environ.setdefault(RAY_FOLDER, DEFAULT_FOLDER)
        on_end = signal.getsignal(signal.SIGTERM)
        try:
            found = _address_of(address)
            ray.init(address=found, logging_level=logging.ERROR, configure_logging=False)
        except (RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
            raise SpecError(
                f"cluster.ray: {address}; no Ray cluster can be used there ({first_line(error)}); "
                "start one (ray start --head --port=6379) or join it (ray start --address), give "
                "its HOST:PORT, and its token where it asks for one (RAY_AUTH_MODE, "
                "RAY_AUTH_TOKEN); or leave cluster.ray out"
            ) from error
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_end)  # Ray puts one of its own in place
    return ray


def _address_of(address: str) -> str:
    """Returns the HOST:PORT of a cluster that answers: Ray would try a dead one for minutes.

    Raises `OSError` where nobody listens, `ValueError` where it is no HOST:PORT.
    """
    if address == "auto":
        noted = Path(os.environ[RAY_FOLDER]) / "ray" / "ray_current_cluster"
        address = os.environ.get("RAY_ADDRESS") or noted.read_text(encoding="utf-8").strip()
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS):
        return address


def total_resources(cluster: Cluster) -> list[dict[str, float]]:
    """Returns what each living node of a cluster has in all, by the resources' names.

    Raises what `connect` raises. The connection is closed again.
    """
    ray = connect(cluster.address)
    try:
        return [node["Resources"] for node in ray.nodes() if node["Alive"]]
    finally:
        ray.shutdown()
