"""From a job's knobs to an engine: which one answers, what names its model, how it is opened."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from retort.engines import Engine, EngineModule, Settings, find_engine, libraries_of, resolve
from retort.engines._replicas import open_replicas
from retort.engines._resident import ResidentEngine, serve
from retort.events import Reporter
from retort.processes.ray_cluster import Cluster
from retort.processes.resident import Address, Resident
from retort.spec import JobSpec
from retort.spec.section import Section
from retort.store import model_folder


def model_line(key: str, model: str, folder: Path) -> str:
    """Returns a line on a model folder: the knob that names it, and its size."""
    return f"{key} {model}: {model_folder.size(folder)['parameters']:,} parameters"


def engine_of(spec: JobSpec) -> EngineModule:
    """Returns the module of the teacher's engine."""
    return find_engine(resolve(spec.generate.engine, spec.generate.top_k))


def teacher_digest(spec: JobSpec) -> str:
    """Returns what names the teacher: a folder's content, a hub commit, or endpoint and name."""
    knobs = spec.generate
    return model_digest(engine_of(spec), knobs.teacher, knobs.endpoint, "generate.teacher")


def model_digest(engine: EngineModule, model: str, endpoint: str | None, where: str) -> str:
    """Returns what names a model. Raises `SpecError` that names the knob where there is none."""
    if engine.REMOTE:
        return f"{endpoint or 'default endpoint'}: {model}"
    return model_folder.digest(model, where)


def settings_of(spec: JobSpec, state: str) -> Settings:
    """Returns the teacher's engine settings; `state` is the URI of its ledger."""
    knobs = spec.generate
    return Settings(
        model=knobs.teacher,
        temperature=knobs.temperature,
        top_p=knobs.top_p,
        max_tokens=knobs.max_tokens,
        max_model_len=knobs.max_model_len,
        top_k=knobs.top_k,
        dtype=knobs.dtype,
        seed=knobs.seed,
        runtime=knobs.runtime.model_dump(mode="json"),
        endpoint=knobs.endpoint,
        api_key_env=knobs.api_key_env,
        state=state,
        scores=knobs.mode == "score",
        frequency_penalty=knobs.frequency_penalty,
        presence_penalty=knobs.presence_penalty,
        stop=knobs.stop,
    )


def cluster_of(spec: JobSpec) -> Cluster | None:
    """Returns the Ray cluster that carries the job; None for this machine alone."""
    knobs = spec.cluster
    return Cluster(knobs.ray, knobs.num_gpus, knobs.resources) if knobs.ray else None


def on_cluster(spec: JobSpec, runtime: Section) -> dict[str, Any]:
    """Returns a section's runtime for `processes.run`, with the cluster where the job has one."""
    cluster = cluster_of(spec)
    return {**runtime.model_dump(), "cluster": cluster and asdict(cluster)}


def teacher_runtime(spec: JobSpec) -> dict[str, Any]:
    """Returns the runtime for `processes.run` of a process that opens the teacher's engine.

    On a cluster that process only asks the engine's replicas.
    """
    libraries = None if cluster_of(spec) else libraries_of(engine_of(spec))
    return {**spec.generate.runtime.model_dump(), "libraries": libraries}


def measured_runtime(spec: JobSpec, engine: EngineModule | None = None) -> dict[str, Any]:
    """Returns the runtime for `processes.run` of a process whose model is measured in an engine,
    without one the student's. On a cluster it only asks the engine's replicas."""
    engine = engine or find_engine(resolve(spec.evaluate.engine, 0))
    libraries = None if cluster_of(spec) else libraries_of(engine)
    return {**spec.evaluate.runtime.model_dump(), "is_measured": True, "libraries": libraries}


def open_teacher(
    spec: JobSpec,
    settings: Settings,
    report: Reporter,
    resident: Resident | Address | None = None,
) -> Engine:
    """Returns the teacher's engine, opened where the job's models run, or that of a resident
    process."""
    name = resolve(spec.generate.engine, spec.generate.top_k)
    if resident:
        return ResidentEngine(Address(**resident.address()), name, settings)
    return open_engine(spec, name, settings, report)


def open_engine(spec: JobSpec, name: str, settings: Settings, report: Reporter) -> Engine:
    """Returns an open engine: here, or as replicas on the job's cluster.

    An endpoint is asked from here.
    """
    module, cluster = find_engine(name), cluster_of(spec)
    if cluster is None or module.REMOTE:
        return module.open_engine(settings)
    return open_replicas(name, settings, cluster, report.note)


def resident_of(spec: JobSpec, log: Path) -> Resident | None:
    """Returns a process for an engine that answers several stages, as the job's teacher does; None
    for an endpoint, and on a cluster, whose replicas are started for each stage."""
    engine = engine_of(spec)
    if engine.REMOTE or cluster_of(spec):
        return None
    return Resident(serve, log, teacher_runtime(spec))
