"""The knobs of a cluster: where a job's models run, never what they give."""

from retort.spec.section import Section, knob


class Cluster(Section):
    """A Ray cluster that carries replicas of engines and the processes of a training."""

    ray: str | None = knob(
        None,
        "address",
        "auto: the cluster that this machine belongs to or RAY_ADDRESS names; else its HOST:PORT.",
    )
    num_gpus: float | None = knob(
        None, "GPUs", "GPUs of each replica or process; 1 where the cluster has any.", ge=0
    )
    resources: dict[str, float] = knob(
        {}, "amounts by name", "Resources of Ray that each replica or process takes besides."
    )
