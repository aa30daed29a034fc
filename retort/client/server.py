"""Jobs on a Prefect server, over its REST interface: the library stays free of Prefect itself.

A job is the flow runs of its name; the latest one says how it stands. Its store is the one that the
run was given.
"""

import os
import time
from base64 import b64encode
from collections.abc import Iterator
from typing import Any

import httpx

from retort.client.state import JobState, Status
from retort.errors import SpecError, StageError
from retort.spec import STAGES, JobSpec
from retort.store.urls import public

FLOW = "distill"
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
TRIES, WAIT_SECONDS = 4, 0.5


class ServerJobs:
    """The jobs of one Prefect server, started through one deployment of the flow."""

    def __init__(self, url: str, deployment: str, store: str | None):
        self.url, self.deployment, self.store = url.rstrip("/"), deployment, store
        self._http = httpx.Client(base_url=self.url, headers=_credentials(), timeout=30)

    def start(self, spec: JobSpec) -> str:
        """Schedules a run of the job and returns its id; the run under way if it is of this spec.

        Raises `SpecError` when the server knows no such deployment or refuses the job, and
        `StageError` when the job runs already with other knobs.
        """
        parameters: dict[str, Any] = {"spec": spec.model_dump(mode="json")}
        if self.store:
            parameters["store"] = self.store
        for run in self._runs(spec.name, 1):
            if STATUS[run["state_type"]] in ("scheduled", "running", "paused"):
                if run["parameters"]["spec"] == parameters["spec"]:
                    return str(run["id"])
                raise StageError(
                    f"job {spec.name} is {run['state_name'].lower()} with another spec; cancel it "
                    "first, or give this one another name"
                )
        path = f"/deployments/name/{FLOW}/{self.deployment}"
        found = self._call("GET", path, missing=f"no deployment {FLOW}/{self.deployment}")
        wanted = {"name": spec.name, "parameters": parameters, "tags": ["retort"]}
        made = self._call("POST", f"/deployments/{found['id']}/create_flow_run", wanted)
        return str(made["id"])

    def state(self, name: str) -> JobState:
        """Returns how a job's latest run stands. Raises `SpecError` for an unknown name."""
        return self._state(self._latest(name))

    def states(self) -> list[JobState]:
        """Returns the latest run of each job, the newest first."""
        newest: dict[str, Any] = {}
        for run in self._runs(None, PAGE):
            newest.setdefault(run["name"], run)
        return [self._state(run) for run in newest.values()]

    def lines(self, name: str) -> Iterator[str]:
        """Yields what a job's latest run says, as it says it, until it is over."""
        run_id, seen = self._latest(name)["id"], 0
        listens_until = time.monotonic()
        while True:
            over = self._state(self._call("GET", f"/flow_runs/{run_id}")).is_over
            last = False
            while rows := self._logs(run_id, seen):
                seen += len(rows)
                last = last or any(map(_is_last, rows))
                yield from (row["message"] for row in rows)
            if over and (last or time.monotonic() >= listens_until):
                return
            if not over:
                listens_until = time.monotonic() + LATE_SECONDS
            time.sleep(LOOK_SECONDS)

    def cancel(self, name: str) -> JobState:
        """Ends a job's latest run: its processes end, and finished work is kept."""
        run = self._latest(name)
        if not self._state(run).is_over:
            waits = STATUS[run["state_type"]] == "scheduled"
            wanted = {"state": {"type": "CANCELLED" if waits else "CANCELLING"}}
            self._call("POST", f"/flow_runs/{run['id']}/set_state", wanted)
        return self.state(name)

    def _state(self, run: dict[str, Any]) -> JobState:
        status, run_id = STATUS[run["state_type"]], run["id"]
        message = (run.get("state") or {}).get("message")
        bad = status in ("failed", "crashed")
        running = status in ("running", "cancelling")
        return JobState(
            name=run["name"],
            status=status,
            run_id=run_id,
            store=run["parameters"].get("store") or ".retort",
            stage=self._stage(run_id) if running or bad else None,
            progress=self._progress(run_id) if running else None,
            error=message if bad else None,
            url=f"{public(self.url).removesuffix('/api')}/runs/flow-run/{run_id}",
        )

    def _stage(self, run_id: str) -> str | None:
        rows = self._call(
            "POST", "/task_runs/filter", {"flow_runs": {"id": {"any_": [run_id]}}, "limit": PAGE}
        )
        of_stages = [row for row in rows if row["name"].split("-")[0] in STAGES]
        order = sorted(of_stages, key=lambda row: row["start_time"] or "9")
        began = [row["name"] for row in order if row["start_time"]]
        return began[-1] if began else None

    def _progress(self, run_id: str) -> float | None:
        wanted = {
            "artifacts": {"flow_run_id": {"any_": [run_id]}, "type": {"any_": ["progress"]}},
            "sort": "UPDATED_DESC",
            "limit": 1,
        }
        rows = self._call("POST", "/artifacts/filter", wanted)
        return float(rows[0]["data"]) / 100 if rows else None

    def _logs(self, run_id: str, offset: int) -> list[dict[str, Any]]:
        wanted = {
            "logs": {"flow_run_id": {"any_": [run_id]}},
            "sort": "TIMESTAMP_ASC",
            "offset": offset,
            "limit": PAGE,
        }
        found: list[dict[str, Any]] = self._call("POST", "/logs/filter", wanted)
        return found

    def _latest(self, name: str) -> dict[str, Any]:
        found = self._runs(name, 1)
        if not found:
            names = sorted({run["name"] for run in self._runs(None, PAGE)})
            listed = ", ".join(names) or "none yet"
            raise SpecError(f"no job '{name}' on this server; there are: {listed}")
        return found[0]

    def _runs(self, name: str | None, limit: int) -> list[dict[str, Any]]:
        wanted: dict[str, Any] = {
            "flows": {"name": {"any_": [FLOW]}},
            "sort": "EXPECTED_START_TIME_DESC",
            "limit": limit,
        }
        if name is not None:
            wanted["flow_runs"] = {"name": {"any_": [name]}}
        found: list[dict[str, Any]] = self._call("POST", "/flow_runs/filter", wanted)
        return found

    def _call(self, method: str, path: str, body: Any = None, missing: str = "") -> Any:
        """Returns what the server answers. A look is tried again where the network fails; what
        starts something is not."""
        place, again = public(self.url), TRIES if "/filter" in path or not body else 1
        for attempt in range(again):
            try:
                answer = self._http.request(method, path, json=body)
                break
            except httpx.TransportError as error:
                if attempt + 1 == again:
                    raise StageError(
                        f"the Prefect server at {place} does not answer ({type(error).__name__}); "
                        "start it, or set PREFECT_API_URL to where it is"
                    ) from None
                time.sleep(WAIT_SECONDS * 2**attempt)
        if answer.status_code == 404 and missing:
            raise SpecError(
                f"{missing} at {place}; `retort up` makes it, or `python -m flows.server_setup`"
            )
        if answer.status_code in (401, 403):
            raise StageError(f"the Prefect server at {place} does not let this client in")
        if answer.status_code in (409, 422):
            raise SpecError(f"the Prefect server refuses it: {answer.json().get('detail')}")
        answer.raise_for_status()
        return answer.json() if answer.content else None


def _credentials() -> dict[str, str]:
    """Returns the header that Prefect's own settings ask for."""
    if key := os.environ.get("PREFECT_API_KEY"):
        return {"Authorization": f"Bearer {key}"}
    if login := os.environ.get("PREFECT_API_AUTH_STRING"):
        return {"Authorization": f"Basic {b64encode(login.encode()).decode()}"}
    return {}


def _is_last(row: dict[str, Any]) -> bool:
    """Whether a line is what Prefect says at the end of a run that nobody ended from outside."""
    return row["task_run_id"] is None and row["message"].startswith("Finished in state")
