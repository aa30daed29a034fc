"""Retort from Python: start jobs, see how they stand, read their reports.

`RetortClient()` speaks to the Prefect server that PREFECT_API_URL names and, where it names none,
runs jobs on this machine. The calls are the same for both.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from retort.client.models import Evaluation, Models, ModelVersion, Score
from retort.client.state import JobState, Status
from retort.errors import SpecError
from retort.spec import JobSpec, build_at, load
from retort.store import open_store

__all__ = [
    "DistillationJob",
    "Evaluation",
    "JobState",
    "Jobs",
    "ModelVersion",
    "Models",
    "RetortClient",
    "Score",
    "Status",
]


@dataclass(frozen=True)
class DistillationJob:
    """A job in the few words that other tools use; `retort.spec.JobSpec` has every knob.

    `hyperparameters` are learning_rate, batch_size, num_epochs, warmup_ratio, weight_decay,
    max_grad_norm, max_length, temperature, top_p, max_tokens and seed. Relative paths start at the
    working directory. Without a name it is called `STUDENT-distilled`.
    """

    teacher_model: str
    student_model: str
    training_data: str
    validation_data: str | None = None
    test_data: str | None = None
    task_type: str | None = None
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    name: str | None = None

    @property
    def spec(self) -> JobSpec:
        """The job with all its knobs. Raises `SpecError` for what cannot be a job."""
        given = {key: value for key, value in vars(self).items() if value not in (None, {})}
        return build_at(given, Path.cwd())


class Backend(Protocol):
    """Where jobs run, and how they are asked about."""

    def start(self, spec: JobSpec) -> str:
        """Starts a job; returns its run's id."""

    def state(self, name: str) -> JobState:
        """Returns how a job stands."""

    def states(self) -> list[JobState]:
        """Returns how all jobs stand, the newest first."""

    def lines(self, name: str) -> Iterator[str]:
        """Yields what a job says until it is over."""

    def cancel(self, name: str) -> JobState:
        """Ends a job."""


JobLike = DistillationJob | JobSpec | str | Path


class Jobs:
    """The jobs of a client, each known by its name."""

    def __init__(self, backend: Backend):
        self._backend = backend

    def create_or_update(self, job: JobLike) -> JobState:
        """Starts a job, or finds it under way, and returns how it stands.

        A job that ran before goes on with all that stands in its store: what has not changed is
        reused. `job` may also be the path of a job file. Raises `SpecError` for a job that cannot
        run, and `StageError` when one of its name runs with another spec.
        """
        spec = spec_of(job)
        self._backend.start(spec)
        return self._backend.state(spec.name)

    def get(self, name: str) -> JobState:
        """Returns how a job stands: status, stage, progress, error. `SpecError` for an unknown."""
        return self._backend.state(name)

    def list(self) -> "list[JobState]":
        """Returns how all jobs stand, the newest first."""
        return self._backend.states()

    def stream(self, name: str) -> Iterator[str]:
        """Yields the lines of a job's latest run as they come; ends when the run is over."""
        return self._backend.lines(name)

    def wait(self, name: str) -> JobState:
        """Returns how a job ended, once it has."""
        for _ in self.stream(name):
            pass
        return self.get(name)

    def cancel(self, name: str) -> JobState:
        """Ends a job's run: its processes end, what is finished is kept."""
        return self._backend.cancel(name)

    def report(self, name: str) -> "JobReport":
        """Returns a finished job's report. Raises `SpecError` where there is none yet."""
        state = self.get(name)
        folder = open_store(state.store).job(name)
        if not folder.has("report.json"):
            raise SpecError(f"job {name} is {state.status} and has no report yet")
        page = folder.read("report.html").decode() if folder.has("report.html") else ""
        return JobReport(folder.read_json("report.json"), page)


@dataclass(frozen=True)
class JobReport:
    """A job's report: `content` as in report.json; a notebook shows the page."""

    content: dict[str, Any] = field(repr=False)
    page: str = field(repr=False)

    def _repr_html_(self) -> str:
        """The page in a frame of its own, so that its style stays there."""
        from html import escape

        frame = f'srcdoc="{escape(self.page)}" style="width:100%;height:60em;border:0"'
        return f'<iframe sandbox="allow-scripts" {frame}></iframe>'


class RetortClient:
    """Jobs on a Prefect server, or on this machine, and the models that they made.

    `server` is the URL of Prefect's API, PREFECT_API_URL if not given; where neither says one, or
    `local` is true, jobs run here. `store` is where they leave their work: on a server the
    deployment's own if not given. `models` are looked for in that store, .retort if not given, and
    asked on this machine, whatever runs the jobs.
    """

    def __init__(
        self,
        server: str | None = None,
        store: str | None = None,
        *,
        deployment: str = "process",
        local: bool = False,
    ):
        self.models = Models(store or ".retort")
        url = None if local else server or os.environ.get("PREFECT_API_URL")
        if url:
            from retort.client.server import ServerJobs

            self.jobs = Jobs(ServerJobs(url, deployment, store))
        else:
            from retort.client.local import JobsHere

            self.jobs = Jobs(JobsHere(store or ".retort"))


def spec_of(job: JobLike) -> JobSpec:
    """Returns the spec of a job in any of its forms. Raises `SpecError`."""
    if isinstance(job, JobSpec):
        return job
    return job.spec if isinstance(job, DistillationJob) else load(job)[0]
