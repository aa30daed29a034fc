"""Jobs on a Prefect server, by Prefect's own client.

This is the one file of `retort/` that imports Prefect, and only a client that was given a server
imports it. A job is the flow runs of its name; its state is that of the latest one, and its store
the one that this run was given.
"""

import contextlib
import time
from collections.abc import Iterator
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.filters import ArtifactFilter, FlowFilter, FlowRunFilter, LogFilter
from prefect.client.schemas.objects import FlowRun, Log
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule
from prefect.client.schemas.sorting import ArtifactSort, FlowRunSort, LogSort
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_KEY, PREFECT_UI_URL
from prefect.states import Cancelled, Cancelling

from retort.client.state import JobState, Status
from retort.errors import SpecError, StageError
from retort.jobs import login
from retort.spec import STAGES, JobSpec
from retort.store.urls import public

FLOW = "distill"
OF_FLOW = FlowFilter.model_validate({"name": {"any_": [FLOW]}})
# Marks the deployments of single jobs; the others are the flow's own, by which jobs are submitted.
JOB_TAG = "retort-job"
STATUS: dict[str, Status] = {
    "SCHEDULED": "scheduled",
    "PENDING": "scheduled",
    "RUNNING": "running",
    "COMPLETED": "completed",
    "FAILED": "failed",
    "CANCELLING": "cancelling",
    "CANCELLED": "cancelled",
    "CRASHED": "crashed",
    "PAUSED": "paused",
}
PAGE = 200
LOOK_SECONDS = 1.0
# Runs send their lines every two seconds, and the last ones when their process ends.
LATE_SECONDS = 10.0
MAKES_IT = "`retort up` makes it, or `python -m flows.server_setup` and `prefect deploy`"
REFUSED = (
    "set PREFECT_API_AUTH_STRING to the server's user:password; `retort up` keeps its own in the "
    "file login.env of its store, to be read by: source .retort/login.env"
)


class ServerJobs:
    """The jobs of one Prefect server, started through one deployment of the flow."""

    def __init__(self, url: str, deployment: str, store: str | None):
        self.url, self.deployment, self.store = url.rstrip("/"), deployment, store
        self._place = public(self.url)
        own = login.of(store or ".retort", login.API, self.url)
        self._api = SyncPrefectClient(
            self.url,
            auth_string=PREFECT_API_AUTH_STRING.value() or own.get(PREFECT_API_AUTH_STRING.name),
            api_key=PREFECT_API_KEY.value(),
            httpx_settings={"timeout": 30},
        )

    def start(self, spec: JobSpec) -> str:
        """Schedules a run of the job and returns its id; the run under way if it is of this spec.

        Raises `SpecError` when the server knows no such deployment or refuses the job, and
        `StageError` when the job already runs with other knobs.
        """
        parameters = self._parameters(spec)
        for run in self._runs(spec.name, 1):
            if _status(run) in ("scheduled", "running", "paused"):
                if JobSpec.model_validate(run.parameters["spec"]) == spec:
                    return str(run.id)
                raise StageError(
                    f"job {spec.name} is {(run.state_name or '').lower()} with another spec; "
                    "cancel it first, or give this one another name"
                )
        deployment = self._deployment(self.deployment)
        if deployment is None:
            raise SpecError(f"no deployment {FLOW}/{self.deployment} at {self._place}; {MAKES_IT}")
        with self._answers():
            run = self._api.create_flow_run_from_deployment(
                deployment.id, name=spec.name, parameters=parameters, tags=["retort"]
            )
        return str(run.id)

    def deploy(self, spec: JobSpec, schedule: str | None, pool: str | None) -> str:
        """Makes the job a deployment of its own, or updates the one it has; returns its page.

        It is as the flow's own deployment for the pool, with the spec as its default parameters.
        `schedule` is a cron expression, in UTC; without one the job runs when it is triggered.
        """
        model = self._model(pool)
        old = self._deployment(spec.name)
        if old and JOB_TAG not in old.tags:
            raise SpecError(
                f"{spec.name} is the name of one of the flow's own deployments; give the job "
                "another name"
            )
        parameters = {**model.parameters, **self._parameters(spec)}
        try:
            cron = CronSchedule(cron=schedule, timezone="UTC") if schedule else None
        except ValueError:
            raise SpecError(
                f"--schedule {schedule!r} is not a cron expression; give five fields, such as "
                '"0 2 * * *" for every night at 2 (UTC)'
            ) from None
        with self._answers():
            made = self._api.create_deployment(
                flow_id=model.flow_id,
                name=spec.name,
                description=f"The job {spec.name}: {spec.generate.teacher} taught to "
                f"{spec.base}{', cut' * (spec.cut is not None)}. Its spec is the default of its "
                "parameters.",
                parameters=parameters,
                schedules=[DeploymentScheduleCreate(schedule=cron, active=True)] if cron else [],
                tags=["retort", JOB_TAG],
                work_pool_name=model.work_pool_name,
                job_variables=model.job_variables,
                entrypoint=model.entrypoint,
                path=model.path,
                pull_steps=model.pull_steps,
                # Where a parameter is required, Prefect's Quick run opens the whole form after all.
                parameter_openapi_schema={**(model.parameter_openapi_schema or {}), "required": []},
                enforce_parameter_schema=True,
                # A run that is due while the last one is still under way has nothing to do.
                concurrency_limit=1,
            )
        return f"{self._pages}/deployments/deployment/{made}"

    def undeploy(self, name: str) -> None:
        """Removes a job's own deployment; its runs stay. Raises `SpecError` where it has none."""
        old = self._deployment(name)
        if old is None or JOB_TAG not in old.tags:
            raise SpecError(f"job {name} has no deployment of its own at {self._place}")
        with self._answers():
            self._api.delete_deployment(old.id)

    def state(self, name: str) -> JobState:
        """Returns the state of a job's latest run. Raises `SpecError` for an unknown name."""
        return self._state(self._latest(name))

    def states(self) -> list[JobState]:
        """Returns the latest run of each job, the newest first."""
        newest: dict[str, FlowRun] = {}
        for run in self._runs(None, PAGE):
            newest.setdefault(run.name, run)
        return [self._state(run) for run in newest.values()]

    def lines(self, name: str) -> Iterator[str]:
        """Yields what a job's latest run logs, as it comes, until it is over."""
        run_id, num_read = self._latest(name).id, 0
        listens_until = time.monotonic()
        while True:
            with self._answers():
                over = self._state(self._api.read_flow_run(run_id)).is_over
            last = False
            while rows := self._logs(run_id, num_read):
                num_read += len(rows)
                last = last or any(map(_is_last, rows))
                yield from (row.message for row in rows)
            if over and (last or time.monotonic() >= listens_until):
                return
            if not over:
                listens_until = time.monotonic() + LATE_SECONDS
            time.sleep(LOOK_SECONDS)

    def cancel(self, name: str) -> JobState:
        """Ends a job's latest run: its processes end, and finished work is kept."""
        run = self._latest(name)
        if not self._state(run).is_over:
            make = Cancelled if _status(run) == "scheduled" else Cancelling
            with self._answers():
                self._api.set_flow_run_state(run.id, make())
        return self.state(name)

    @property
    def _pages(self) -> str:
        """The address of the server's pages."""
        return (PREFECT_UI_URL.value() or self._place.removesuffix("/api")).rstrip("/")

    def _parameters(self, spec: JobSpec) -> dict[str, object]:
        """Returns the flow's parameters; without a store of its own the deployment's one holds."""
        store = {"store": self.store} if self.store else {}
        # A deployment's parameters may not hold the null of a knob that was left out.
        return {"spec": spec.model_dump(mode="json", exclude_none=True), **store}

    def _deployment(self, name: str) -> DeploymentResponse | None:
        with self._answers(), contextlib.suppress(ObjectNotFound):
            return self._api.read_deployment_by_name(f"{FLOW}/{name}")
        return None

    def _model(self, pool: str | None) -> DeploymentResponse:
        """Returns the flow's own deployment for a pool, by which a job's own is made."""
        with self._answers():
            deployments = self._api.read_deployments(flow_filter=OF_FLOW, limit=PAGE)
        own = [deployment for deployment in deployments if JOB_TAG not in deployment.tags]
        for deployment in own:
            if pool == deployment.work_pool_name or (
                not pool and deployment.name == self.deployment
            ):
                return deployment
        pools = ", ".join(sorted({d.work_pool_name or "" for d in own})) or "none"
        wanted = f"for the pool {pool}" if pool else f"named {self.deployment}"
        raise SpecError(
            f"no deployment of the flow {FLOW} {wanted} at {self._place}; {MAKES_IT}; pools that "
            f"have one: {pools}"
        )

    def _state(self, run: FlowRun) -> JobState:
        status = _status(run)
        bad = status in ("failed", "crashed")
        running = status in ("running", "cancelling")
        return JobState(
            name=run.name,
            status=status,
            run_id=str(run.id),
            store=run.parameters.get("store") or ".retort",
            stage=self._stage(run.id) if running or bad else None,
            progress=self._progress(run.id) if running else None,
            error=run.state.message if bad and run.state else None,
            url=f"{self._pages}/runs/flow-run/{run.id}",
        )

    def _stage(self, run_id: UUID) -> str | None:
        of_run = FlowRunFilter.model_validate({"id": {"any_": [run_id]}})
        with self._answers():
            tasks = self._api.read_task_runs(flow_run_filter=of_run, limit=PAGE)
        began = [
            (task.start_time, task.name)
            for task in tasks
            if task.start_time and task.name.split("-")[0] in STAGES
        ]
        return max(began)[1] if began else None

    def _progress(self, run_id: UUID) -> float | None:
        bars = {"flow_run_id": {"any_": [run_id]}, "type": {"any_": ["progress"]}}
        of_run = ArtifactFilter.model_validate(bars)
        with self._answers():
            rows = self._api.read_artifacts(
                artifact_filter=of_run, sort=ArtifactSort.UPDATED_DESC, limit=1
            )
        return float(str(rows[0].data)) / 100 if rows else None

    def _logs(self, run_id: UUID, offset: int) -> list[Log]:
        of_run = LogFilter.model_validate({"flow_run_id": {"any_": [run_id]}})
        with self._answers():
            return self._api.read_logs(of_run, PAGE, offset, LogSort.TIMESTAMP_ASC)

    def _latest(self, name: str) -> FlowRun:
        runs = self._runs(name, 1)
        if not runs:
            names = ", ".join(sorted({run.name for run in self._runs(None, PAGE)})) or "none yet"
            raise SpecError(f"no job '{name}' on this server; there are: {names}")
        return runs[0]

    def _runs(self, name: str | None, limit: int) -> list[FlowRun]:
        of_name = FlowRunFilter.model_validate({"name": {"any_": [name]}}) if name else None
        with self._answers():
            return self._api.read_flow_runs(
                flow_filter=OF_FLOW,
                flow_run_filter=of_name,
                sort=FlowRunSort.EXPECTED_START_TIME_DESC,
                limit=limit,
            )

    @contextlib.contextmanager
    def _answers(self) -> Iterator[None]:
        """Turns what a server that refuses or is away raises into an error with its remedy."""
        try:
            yield
        except httpx.TransportError as error:
            raise StageError(
                f"the Prefect server at {self._place} does not answer ({type(error).__name__}); "
                "start it, or set PREFECT_API_URL to its address"
            ) from None
        except httpx.HTTPStatusError as error:
            code = error.response.status_code
            if code in (401, 403):
                raise StageError(
                    f"the Prefect server at {self._place} refused this client ({code}); {REFUSED}"
                ) from None
            if code in (409, 422):
                raise SpecError(f"the Prefect server refused the job: {_cause(error)}") from None
            raise StageError(f"the Prefect server at {self._place} failed ({code})") from None


def _cause(error: httpx.HTTPStatusError) -> str:
    """Returns what a server's refusal says; Prefect has a form for its own, FastAPI another."""
    body = error.response.json()
    detail = body.get("exception_detail") or body.get("detail") or body
    return (
        "; ".join(str(item["msg"]) for item in detail) if isinstance(detail, list) else str(detail)
    )


def _status(run: FlowRun) -> Status:
    return STATUS[run.state_type.value if run.state_type else "PENDING"]


def _is_last(row: Log) -> bool:
    """Whether a line is what Prefect logs at the end of a run that nobody ended from outside."""
    return row.task_run_id is None and row.message.startswith("Finished in state")
