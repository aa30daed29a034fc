"""Retort from Python: start jobs, watch them, read their reports.

`RetortClient()` speaks to the Prefect server that PREFECT_API_URL names and, where it names none,
runs jobs on this machine. The calls are the same for both.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from retort.client.models import Evaluation, Models, ModelVersion, Score
from retort.client.state import JobState, Status
from retort.errors import SpecError
from retort.jobs import login, trust
from retort.records import JsonObject
from retort.spec import JobSpec, build_at, documents, flat, load
from retort.store import open_store

__all__ = [
    "DistillationJob",
    "Evaluation",
    "JobState",
    "Jobs",
    "MLClient",
    "ModelVersion",
    "Models",
    "RetortClient",
    "Score",
    "Status",
]


# What a client's file may say.
CONFIG = ("store", "server", "deployment", "mlflow")


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
    hyperparameters: JsonObject = field(default_factory=dict)
    name: str | None = None

    @property
    def spec(self) -> JobSpec:
        """The job with all its knobs. Raises `SpecError` for what cannot be a job."""
        keys = {key: value for key, value in vars(self).items() if value not in (None, {})}
        return build_at(keys, Path.cwd())


class Backend(Protocol):
    """Where jobs run: a Prefect server, or this machine."""

    def start(self, spec: JobSpec) -> str:
        """Starts a job; returns its run's id."""

    def state(self, name: str) -> JobState:
        """Returns the state of a job's latest run."""

    def states(self) -> list[JobState]:
        """Returns the state of all jobs, the newest first."""

    def lines(self, name: str) -> Iterator[str]:
        """Yields a job's lines until it is over."""

    def cancel(self, name: str) -> JobState:
        """Ends a job."""

    def deploy(self, spec: JobSpec, schedule: str | None, pool: str | None) -> str:
        """Makes a job a deployment of its own; returns the address of its page."""

    def undeploy(self, name: str) -> None:
        """Removes a job's own deployment."""


JobLike = DistillationJob | JobSpec | str | Path


class Jobs:
    """The jobs of a client, each known by its name."""

    def __init__(self, backend: Backend):
        self._backend = backend

    def create_or_update(self, job: JobLike) -> JobState:
        """Starts a job, unless it is already under way, and returns its state.

        A job that ran before continues from its store: what has not changed is reused. `job` may
        also be the path of a job file. Raises `SpecError` for a job that cannot run, and
        `StageError` when one of its name runs with another spec.
        """
        spec = spec_of(job)
        self._backend.start(spec)
        return self._backend.state(spec.name)

    def get(self, name: str) -> JobState:
        """Returns a job's status, stage, progress and error. `SpecError` for an unknown name."""
        return self._backend.state(name)

    def list(self) -> "list[JobState]":
        """Returns the state of all jobs, the newest first."""
        return self._backend.states()

    def stream(self, name: str) -> Iterator[str]:
        """Yields the lines of a job's latest run as they come; ends when the run is over."""
        return self._backend.lines(name)

    def wait(self, name: str) -> JobState:
        """Returns a job's state once it is over."""
        for _ in self.stream(name):
            pass
        return self.get(name)

    def cancel(self, name: str) -> JobState:
        """Ends a job's run: its processes end, what is finished is kept."""
        return self._backend.cancel(name)

    def deploy(self, job: JobLike, schedule: str | None = None, pool: str | None = None) -> str:
        """Makes a job a Prefect deployment of its own, or updates it; returns its page's address.

        Its spec becomes the default of its parameters. `schedule` is a cron expression in UTC.
        Raises `SpecError` without a server, for a pool that has no deployment of the flow, and for
        a schedule that is no cron expression.
        """
        return self._backend.deploy(spec_of(job), schedule, pool)

    def undeploy(self, name: str) -> None:
        """Removes a job's own deployment; its runs are kept. `SpecError` where there is none."""
        self._backend.undeploy(name)

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

    content: JsonObject = field(repr=False)
    page: str = field(repr=False)

    def _repr_html_(self) -> str:
        """The page in a frame of its own, so that its style stays there."""
        from html import escape

        frame = f'srcdoc="{escape(self.page)}" style="width:100%;height:60em;border:0"'
        return f'<iframe sandbox="allow-scripts" {frame}></iframe>'


class RetortClient:
    """Jobs on a Prefect server, or on this machine, and the models that they made.

    `server` is the URL of Prefect's API (default: PREFECT_API_URL); without one, or where `local`
    is true, jobs run here. `store` is where they leave their work (default: on a server the
    deployment's own, else .retort). `models` looks for models in that store and runs them on this
    machine, whatever runs the jobs. A server that `retort up` started with that store is sent its
    login; for another one set PREFECT_API_AUTH_STRING or PREFECT_API_KEY.
    """

    def __init__(
        self,
        server: str | None = None,
        store: str | None = None,
        *,
        deployment: str = "process",
        local: bool = False,
    ):
        self.models = Models(store or ".retort", self._until_over)
        login.use(store or ".retort")
        url = None if local else server or os.environ.get("PREFECT_API_URL")
        if url:
            from retort.client.server import ServerJobs

            self.jobs = Jobs(ServerJobs(url, deployment, store))
        else:
            from retort.client.local import JobsHere

            self.jobs = Jobs(JobsHere(store or ".retort"))

    def _until_over(self, names: Sequence[str]) -> str:
        """Waits for the jobs of these names that are under way; returns what went wrong with one,
        or nothing."""
        wrong = ""
        for state in self.jobs.list() if names else ():
            if state.name not in names:
                continue
            ended = state
            if not state.is_over:
                said = f"waiting for job {state.name}, which is {state.status}"
                logging.getLogger("retort").warning(said)
                ended = self.jobs.wait(state.name)
            if ended.status != "completed":
                wrong = f"job {ended.name} {ended.status}: {ended.error or 'start it again'}"
        return wrong

    @classmethod
    def from_config(cls, path: str | Path = "retort.yaml") -> "RetortClient":
        """Returns a client of the store and servers that the environment or a file names.

        The file may have `store` (its relative path starts at the file), `server` (the URL of
        Prefect's API), `deployment` and `mlflow` (the URL of MLflow's server); RETORT_STORE,
        PREFECT_API_URL and MLFLOW_TRACKING_URI come before it. Without a file and variables, jobs
        run here. Raises `SpecError` for a file that cannot be read or has another key.
        """
        config = _config(Path(path))
        if "mlflow" in config:
            os.environ.setdefault("MLFLOW_TRACKING_URI", config["mlflow"])
        store = os.environ.get("RETORT_STORE") or config.get("store")
        server = os.environ.get("PREFECT_API_URL") or config.get("server")
        return cls(server, store, deployment=config.get("deployment", "process"))


# The name that users of Azure know.
MLClient = RetortClient


def _config(path: Path) -> dict[str, str]:
    """Returns the content of a client's file; nothing where there is no such file."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise SpecError(f"{path} cannot be read: {error}") from error
    config = flat.mapping(documents.parse(text, str(path)), str(path))
    try:
        flat.refuse_unknown(config, CONFIG, "")
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from None
    for key, value in config.items():
        if not isinstance(value, str):
            raise SpecError(f"{path}: {key} must be a text, it is a {type(value).__name__}")
    if "store" in config and "://" not in config["store"]:
        config["store"] = str(path.resolve().parent / Path(config["store"]).expanduser())
    return config


def spec_of(job: JobLike) -> JobSpec:
    """Returns the spec of a job in any of its forms. Raises `SpecError`."""
    if isinstance(job, str | Path):
        spec = load(job)[0]
        trust.check(spec, Path(job).resolve().parent, trusts=False)
        return spec
    # A program of the user's own runs here, and what lies beside it is its own code.
    trust.look_in_own(Path.cwd())
    return job.spec if isinstance(job, DistillationJob) else job
