"""The MLflow runs of a job: one parent, and below it one for each stage, with knobs, curves,
lineage and files.

The client and run ids are explicit because the fluent API's active run is invisible in other
threads. A tracking server that fails is reported and never stops a job.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout, suppress
from functools import wraps
from io import StringIO
from typing import Any, TypeVar, cast

from retort.processes import interrupts
from retort.processes.disk import make_folder, temporary_folder
from retort.records import JsonObject
from retort.store import Store
from retort.store.urls import public
from retort.tracking import registry
from retort.tracking.names import is_refusal, safe_names
from retort.tracking.promotion import mlflow_error
from retort.tracking.registry import CHAMPION, GATE, ReleasedStudent, Version
from retort.tracking.server import SQLITE, connect, may_have_alias, tracking_uri

Call = TypeVar("Call", bound=Callable[..., Any])
MAX_PARAM_CHARACTERS = 500
MAX_FAILURES = 3
ERROR = "retort.error"


def _forgiving(call: Call) -> Call:
    """Makes a call that fails a warning instead of an error; after a few, tracking is off.

    A call that MLflow refuses for what it holds, such as a name, is no failure of the server.
    """

    @wraps(call)
    def guarded(self: "Tracker", *args: Any, **kwargs: Any) -> Any:
        if self.failures >= MAX_FAILURES:
            return None
        try:
            # An interrupt in the middle of a write would leave the database file locked.
            is_file = self.uri.startswith(SQLITE)
            # One thread at a time; mlflow prints a link at the end of each run.
            with (
                interrupts.delayed() if is_file else nullcontext(),
                self._lock,
                redirect_stdout(StringIO()),
            ):
                return call(self, *args, **kwargs)
        except Exception as error:  # whatever the server or the network raises
            if not (self.parent_id and is_refusal(error)):
                self.failures += 1 if self.parent_id else MAX_FAILURES
            rest = "; tracking is off for this run" if self.failures >= MAX_FAILURES else ""
            self._warn(f"warning: {call.__name__}: {mlflow_error(self.uri, error)}{rest}")
            return None

    return cast(Call, guarded)


class Tracker:
    """Tracks one run of a job in one MLflow; `kind` says what is done with the job where it is not
    run: plan ... Its methods never raise."""

    def __init__(self, store: Store, warn: Callable[[str], None], kind: str = "job"):
        self.uri, self.failures, self._store, self._warn = tracking_uri(store), 0, store, warn
        self._kind = kind
        self._client: Any = None
        self._lock = threading.RLock()
        # By run: stages may run side by side, and several have the same metrics.
        self._buffers: dict[str, list[Any]] = defaultdict(list)
        self._curves: dict[str, set[str]] = defaultdict(set)
        self._refused: set[str] = set()
        self._flushed = 0.0
        self.experiment_id = self.parent_id = ""

    @_forgiving
    def open_job(self, job: str, tags: dict[str, str], resume_tag: str) -> None:
        """Starts the job's parent run, or reopens the one that carries the same resume tag."""
        self._client = connect(self.uri, self._warn)
        found = self._client.get_experiment_by_name(job)
        self.experiment_id = found.experiment_id if found else self._new_experiment(job)
        if tags.get(resume_tag):
            query = f"tags.`{resume_tag}` = '{tags[resume_tag]}' and {self._is_parent}"
            earlier = self._client.search_runs([self.experiment_id], query, max_results=1)
            if earlier:
                self.parent_id = earlier[0].info.run_id
                self._end_children(self.parent_id)
                self._client.update_run(self.parent_id, status="RUNNING")
                if ERROR in earlier[0].data.tags:
                    self._client.delete_tag(self.parent_id, ERROR)
                return
        run = self._client.create_run(
            self.experiment_id,
            run_name=job if self._kind == "job" else self._kind,
            tags={**tags, "retort.stage": self._kind},
        )
        self.parent_id = run.info.run_id

    @property
    def _is_parent(self) -> str:
        """The condition on runs that are parents of this kind."""
        return f"tags.`retort.stage` = '{self._kind}'"

    def _new_experiment(self, job: str) -> str:
        location = None
        if self.uri.startswith(SQLITE):
            folder = self._store.local_state() / "mlflow-artifacts" / job
            location = str(make_folder(folder))
        return str(self._client.create_experiment(job, artifact_location=location))

    @_forgiving
    def log_shadow(self, job: str, model: str, numbers: dict[str, float]) -> None:
        """Logs what a model did on real requests as a run of its own in the job's experiment."""
        self._client = connect(self.uri, self._warn)
        found = self._client.get_experiment_by_name(job)
        self.experiment_id = found.experiment_id if found else self._new_experiment(job)
        tags = {"retort.stage": "shadow", "retort.model": model}
        run_id = self._client.create_run(
            self.experiment_id, run_name="shadow", tags=tags
        ).info.run_id
        self.metrics(run_id, numbers, step=0)
        self._flush(run_id)
        self._client.set_terminated(run_id, "FINISHED")

    @_forgiving
    def others_running(self, tag: str) -> dict[str, str]:
        """Returns the values of a tag of this job's other unfinished runs, by run id."""
        query = f"{self._is_parent} and attributes.status = 'RUNNING'"
        found = self._client.search_runs([self.experiment_id], query)
        tags = {run.info.run_id: run.data.tags.get(tag, "") for run in found}
        tags.pop(self.parent_id, None)
        return tags

    @_forgiving
    def end_lost(self, run_id: str) -> None:
        """Ends the run of a job whose process is gone, and those of its stages, as killed."""
        self._end_children(run_id)
        self._client.set_terminated(run_id, "KILLED")

    def _end_children(self, run_id: str) -> None:
        """Ends the unfinished runs of stages, which a process that was killed could not end."""
        query = f"tags.`mlflow.parentRunId` = '{run_id}' and attributes.status = 'RUNNING'"
        for child in self._client.search_runs([self.experiment_id], query):
            self._client.set_tag(child.info.run_id, ERROR, "its process is gone")
            self._client.set_terminated(child.info.run_id, "KILLED")

    @_forgiving
    def open_stage(self, stage: str, tags: dict[str, str], knobs: JsonObject) -> str:
        """Starts a stage's run below the job's; returns its id. Knobs become parameters."""
        from mlflow.entities import Param
        from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

        run = self._client.create_run(
            self.experiment_id,
            run_name=stage,
            tags={**tags, "retort.stage": stage, MLFLOW_PARENT_RUN_ID: self.parent_id},
        )
        parameters = [
            Param(key, public(str(value))[:MAX_PARAM_CHARACTERS])
            for key, value in safe_names(_flat(knobs)).items()
        ]
        self._client.log_batch(run.info.run_id, params=parameters)
        return str(run.info.run_id)

    @_forgiving
    def metrics(self, run_id: str, values: dict[str, float], step: int) -> None:
        """Logs the numbers of a step; they are sent in batches, at most one a second."""
        from mlflow.entities import Metric

        now, named = int(time.time() * 1000), safe_names(values)
        self._curves[run_id] |= named.keys()
        self._buffers[run_id] += [Metric(name, float(v), now, step) for name, v in named.items()]
        if time.monotonic() - self._flushed > 1:
            self._flush(run_id)

    def _flush(self, run_id: str) -> None:
        waiting, self._flushed = self._buffers.pop(run_id, []), time.monotonic()
        for start in range(0, len(waiting), 1000):
            batch = [m for m in waiting[start : start + 1000] if m.key not in self._refused]
            try:
                self._client.log_batch(run_id, metrics=batch)
            except Exception as error:
                if not is_refusal(error):
                    raise
                self._log_singly(run_id, batch)

    def _log_singly(self, run_id: str, metrics: list[Any]) -> None:
        """Logs what MLflow refused together one by one; gives up those that it refuses."""
        for metric in metrics:
            try:
                self._client.log_batch(run_id, metrics=[metric])
            except Exception as error:
                if not is_refusal(error):
                    raise
                self._refused.add(metric.key)
                self._warn(f"warning: metric {metric.key}: {mlflow_error(self.uri, error)}")

    @_forgiving
    def dataset(self, run_id: str, name: str, uri: str, digest: str) -> None:
        """Logs an input of a run by its address and digest; its data is not loaded."""
        from mlflow.data.code_dataset_source import CodeDatasetSource
        from mlflow.data.meta_dataset import MetaDataset
        from mlflow.entities import DatasetInput, InputTag

        source = CodeDatasetSource(tags={"uri": public(uri)})
        dataset = MetaDataset(source, name=name, digest=digest[:32])
        tags = [InputTag("mlflow.data.context", name), InputTag("sha256", digest)]
        entity = dataset._to_mlflow_entity()
        self._client.log_inputs(run_id, datasets=[DatasetInput(entity, tags)])

    @_forgiving
    def close_stage(self, run_id: str, facts: JsonObject, files: dict[str, str]) -> None:
        """Logs a stage's numbers as metrics and its small files as artifacts; ends it well."""
        flat = safe_names(_flat(facts))
        numbers = {name: float(v) for name, v in flat.items() if isinstance(v, int | float)}
        # A metric with a curve is left out: at step 0 it would become the first point.
        curves = self._curves.pop(run_id, set())
        self.metrics(run_id, {k: v for k, v in numbers.items() if k not in curves}, step=0)
        self._flush(run_id)
        for name, text in files.items():
            self._client.log_text(run_id, text, name)
        self._client.set_terminated(run_id, "FINISHED")

    @_forgiving
    def fail(self, run_id: str, error: BaseException) -> None:
        """Ends a run as failed, or as killed when it was interrupted, with the error's message."""
        status = "FAILED" if isinstance(error, Exception) else "KILLED"
        with suppress(Exception):
            self._flush(run_id)
        self._client.set_tag(run_id, ERROR, public(str(error))[:4000])
        self._client.set_terminated(run_id, status)

    @_forgiving
    def cached(self, stage: str, made_by: str) -> None:
        """Tags the job's run with the run that made a reused artifact."""
        self._client.set_tag(self.parent_id, f"retort.cached.{stage}", made_by or "another store")

    @_forgiving
    def champion(self, name: str, train: str) -> Version | None:
        """Returns the version that a student is compared with: the champion of its name.

        Where the champion is this very student (`train` names the artifact of its training), it is
        the version that the champion was compared with, so that a repeated run has the same result.
        """
        if not may_have_alias(self.uri, name, CHAMPION):
            return None
        client = connect(self.uri)
        found = registry.by_alias(client, name, CHAMPION)
        if found and found.train == train:
            found = registry.by_number(client, name, found.compared_with)
        return found

    @_forgiving
    def register(self, student: ReleasedStudent) -> str:
        """Makes a released student a version of its registered model; returns its number."""
        return registry.register(self._client, self._client.get_run(self.parent_id), student)

    @_forgiving
    def trial(self, name: str, knobs: JsonObject, numbers: dict[str, float]) -> None:
        """Adds a finished run below the parent: what a training of other knobs came to."""
        run_id = self.open_stage(name, {"retort.trial": name}, knobs)
        self.close_stage(run_id, numbers, {})

    @_forgiving
    def close_job(
        self, numbers: dict[str, float], gate_passed: bool | None, files: dict[str, bytes]
    ) -> None:
        """Attaches the report's numbers and files to the parent run and ends it well."""
        self._buffers.clear()
        self.metrics(self.parent_id, numbers, step=0)
        self._flush(self.parent_id)
        with temporary_folder() as scratch:
            for name, data in files.items():
                (scratch / name).write_bytes(data)
            self._client.log_artifacts(self.parent_id, str(scratch))
        if gate_passed is not None:
            self._client.set_tag(self.parent_id, GATE, "passed" if gate_passed else "refused")
        self._client.set_terminated(self.parent_id, "FINISHED")


def _flat(value: JsonObject, prefix: str = "") -> JsonObject:
    found: JsonObject = {}
    for key, item in value.items():
        if isinstance(item, dict):
            found |= _flat(item, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = item
    return found
