"""The distillation flow: its stages, each cached by its artifact's manifest.

The controls, with which the student is compared, are trained beside it where the machine has room,
else after it. The champion of the student's name, where there is one, is evaluated as the student
is.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from uuid import UUID

from prefect import flow
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run

from flows import embedded
from retort.events import shown
from retort.jobs.run import JobRun
from retort.metrics.comparison import ReportContent, table, verdict
from retort.processes.libraries import parse_one_at_a_time
from retort.spec import JobSpec, StageName
from retort.store import open_store
from retort.store.urls import public
from tasks import (
    curate,
    cut_student,
    evaluate,
    evaluate_champion,
    evaluate_exports,
    examples,
    export_all,
    generate_all,
    release,
    report,
    train_all,
)
from tasks.listeners import forgiving, leave, markdown, outbox, tell

parse_one_at_a_time()

FLOW_RUN = "prefect.flow_run_id"
# How long a flow waits at its end for its last artifacts to be sent.
SEND_SECONDS = 10.0
# The reports of the jobs that this process has finished, by their names. A caller of the flow finds
# them here even if the server went away, so that the flow's own end failed.
finished: dict[str, ReportContent] = {}


@flow(name="distill", flow_run_name="{spec.name}", persist_result=False)
def distill(
    spec: JobSpec, store: str = ".retort", force: tuple[StageName, ...] = ()
) -> ReportContent:
    """Distils a teacher into a student and returns the report's content.

    Args:
        spec: The job, one section per stage.
        store: A local folder or s3://bucket/prefix; it keeps all that was made before.
        force: Stages to run again although they are cached.
    """
    with open_job(spec, store, force) as job:
        asked = examples(job)
        responses = generate_all(job, **asked)
        kept = curate(job, **asked, generate=responses)
        base = cut_student(job, **asked, generate=responses, curate=kept)
        students = train_all(job, **asked, generate=responses, curate=kept, **base)
        learned = {**asked, "train": students["train"]}
        exports = export_all(job, **learned, generate=responses, curate=kept)
        scores = evaluate(job, **asked, **students, **base)
        exported = evaluate_exports(job, **learned, **exports)
        champion = evaluate_champion(job, **asked)
        page = report(
            job,
            **asked,
            generate=responses,
            curate=kept,
            evaluate=scores,
            **base,
            **students,
            **champion,
            **exports,
            **exported,
        )
        release(job, **learned, curate=kept, report=page, **exports)
        from retort.jobs import reporting  # scipy and more, which nothing before needs

        content = finished[spec.name] = reporting.finish(job, flow_run.get_id())
        publish(job, content)
        outbox.flush(SEND_SECONDS)
        return content


@contextmanager
def open_job(
    spec: JobSpec, store: str, force: tuple[StageName, ...], kind: str = "job"
) -> Iterator[JobRun]:
    """Gives the checked job with its MLflow run open, and closes that run with its true status."""
    job = JobRun(spec, open_store(store), force, tell, kind)
    flow_run_id = flow_run.get_id() or ""
    url = "" if embedded.is_used() else flow_run.get_flow_run_ui_url() or ""
    tags = {FLOW_RUN: flow_run_id, "prefect.flow_run_url": url}
    if url:  # MLflow's page shows a tag as text; a link has to be in the description
        tags["mlflow.note.content"] = f"[This run in Prefect]({url})"
    job.open(tags)
    end_what_is_lost(job)
    link_to_mlflow(job)
    try:
        yield job
    except BaseException as error:
        job.fail(error)
        if not isinstance(error, Exception):  # Ctrl-C, SIGTERM, a cancelled run
            kept = ", ".join(job.used) or "no stage yet"
            job.note("job", f"ended from outside; kept: {kept}; the next run continues from there")
        raise
    finally:
        job.close()


def end_what_is_lost(job: JobRun) -> None:
    """Ends the MLflow runs of this job whose flow runs are over: their machines were lost."""
    others = job.tracker.others_running(FLOW_RUN)
    if not others:
        return
    with forgiving(), get_client(sync_client=True) as client:
        for run_id, flow_run_id in others.items():
            with suppress(ObjectNotFound, ValueError):
                state = client.read_flow_run(UUID(flow_run_id)).state
                if state and state.is_final():
                    job.tracker.end_lost(run_id)


def page_in_mlflow(job: JobRun) -> str | None:
    """Returns the address of the job's MLflow run, where MLflow has a web page.

    RETORT_MLFLOW_URL is MLflow's address for a browser, where that differs from a job's, which may
    be http://mlflow:5000 among containers. It is used for links only.
    """
    tracker = job.tracker
    server = os.environ.get("RETORT_MLFLOW_URL") or tracker.uri
    if not (server.startswith("http") and tracker.parent_id):
        return None
    path = f"#/experiments/{tracker.experiment_id}/runs/{tracker.parent_id}"
    # Without it a new browser opens MLflow's pages about GenAI.
    view = "workflowType=machine_learning"
    return f"{public(server).rstrip('/')}/{path}?{view}"


def link_to_mlflow(job: JobRun) -> None:
    """Leaves a link from the flow run to the job's MLflow run."""
    if url := page_in_mlflow(job):
        text = "The run in MLflow: knobs, curves, files, the registered model."
        leave("markdown", "mlflow-run", f"[MLflow run]({url})", text)


def publish(job: JobRun, content: ReportContent) -> None:
    """Leaves the comparison as a table among the flow run's artifacts, and the report as Markdown
    with the places of its page, the student and the MLflow run."""
    heading, *rows = table(content.models, content.comparison.metric)
    names = ["measure", *map(shown, heading[1:])]
    cells = [dict(zip(names, map(shown, row), strict=True)) for row in rows]
    leave(
        "table",
        "comparison",
        json.dumps(cells),
        markdown(verdict(content.comparison, content.gate)),
    )
    latest = job.store.job(job.spec.name)
    places = {
        "the page": f"{latest.uri}/report.html",
        "the student": f"{content.artifacts['release']}/model",
        "MLflow": page_in_mlflow(job) or f"{content.mlflow['tracking_uri']}",
    }
    lines = [f"- {what}: {place}" for what, place in places.items()]
    text = latest.read("report.md").decode()
    leave(
        "markdown",
        "report",
        "\n".join([text, "## Where it is", "", *lines, ""]),
        "What was gained and lost, with examples, and where all of it is.",
    )
