"""The distillation flow: seven stages, each cached by its artifact's manifest.

The controls that the student is compared with are trained as it is, one after the other; the
champion of its name, where there is one, is evaluated as it is.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from uuid import UUID

from prefect import flow
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_table_artifact,
)
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run

from retort.jobs.run import JobRun
from retort.metrics.comparison import ReportContent, table, verdict
from retort.spec import JobSpec, StageName, training_of
from retort.store import open_store
from retort.tracking import without_secrets
from tasks import (
    curate,
    evaluate,
    evaluate_champion,
    generate,
    prepare,
    release,
    report,
    train,
    train_control,
)
from tasks.listeners import tell

FLOW_RUN = "prefect.flow_run_id"


@flow(name="distill", flow_run_name="{spec.name}", persist_result=False)
def distill(
    spec: JobSpec, store: str = ".retort", force: tuple[StageName, ...] = ()
) -> ReportContent:
    """Distils a teacher into a student and returns the report's content.

    Args:
        spec: The job, one section per stage.
        store: A local folder or s3://bucket/prefix with all that was made before.
        force: Stages to run again although their artifacts stand.
    """
    with open_job(spec, store, force) as job:
        examples = prepare(job)
        responses = generate(job, prepare=examples)
        kept = curate(job, prepare=examples, generate=responses)
        student = train(job, prepare=examples, generate=responses, curate=kept)
        controls = {
            training_of(name): train_control(
                job, name, prepare=examples, generate=responses, curate=kept
            )
            for name in spec.controls
        }
        scores = evaluate(job, prepare=examples, train=student, **controls)
        champion = evaluate_champion(job, prepare=examples)
        page = report(
            job,
            prepare=examples,
            generate=responses,
            curate=kept,
            train=student,
            evaluate=scores,
            **controls,
            **champion,
        )
        release(job, prepare=examples, curate=kept, train=student, report=page)
        content = job.finish(flow_run.get_id())
        publish(job, content)
        return content


@contextmanager
def open_job(spec: JobSpec, store: str, force: tuple[StageName, ...]) -> Iterator[JobRun]:
    """Gives the checked job with its MLflow run open, and ends that run honestly."""
    job = JobRun(spec, open_store(store), force, tell)
    flow_run_id = flow_run.get_id() or ""
    url = flow_run.get_flow_run_ui_url() or ""
    url = url if url.startswith("http") else ""  # an embedded server has no page
    tags = {FLOW_RUN: flow_run_id, "prefect.flow_run_url": url}
    if url:  # MLflow's page shows a tag as text, and makes a link of what is in its description
        tags["mlflow.note.content"] = f"[This run in Prefect]({url})"
    job.open(tags)
    end_what_is_lost(job)
    link_to_mlflow(job)
    try:
        yield job
    except BaseException as error:
        job.fail(error)
        raise


def end_what_is_lost(job: JobRun) -> None:
    """Ends the MLflow runs of this job whose flow runs are over: their machines were lost."""
    for run_id, flow_run_id in (job.tracker.others_running(FLOW_RUN) or {}).items():
        with suppress(ObjectNotFound, ValueError), get_client(sync_client=True) as client:
            state = client.read_flow_run(UUID(flow_run_id)).state
            if state and state.is_final():
                job.tracker.end_lost(run_id)


def page_in_mlflow(job: JobRun) -> str | None:
    """Returns the address of the job's MLflow run, where MLflow has a web page.

    RETORT_MLFLOW_URL is MLflow's address for a browser, where that is another than for a job, such
    as http://mlflow:5000 among containers. Only links are made of it.
    """
    tracker = job.tracker
    server = os.environ.get("RETORT_MLFLOW_URL") or tracker.uri
    if not (server.startswith("http") and tracker.parent_id):
        return None
    path = f"#/experiments/{tracker.experiment_id}/runs/{tracker.parent_id}"
    # Else a new browser shows the pages about agents.
    view = "workflowType=machine_learning"
    return f"{without_secrets(server).rstrip('/')}/{path}?{view}"


def link_to_mlflow(job: JobRun) -> None:
    """Leaves a link from the flow run to the job's MLflow run."""
    if url := page_in_mlflow(job):
        told = "The run in MLflow: knobs, curves, files, the registered model."
        create_link_artifact(url, link_text="MLflow run", key="mlflow-run", description=told)


def publish(job: JobRun, content: ReportContent) -> None:
    """Shows the comparison as a table among the flow run's artifacts, and the report as text that
    says where the page, the model and the MLflow run are."""
    heading, *rows = table(content.models, content.comparison.metric)
    names = ["measure", *heading[1:]]
    shown = [dict(zip(names, row, strict=True)) for row in rows]
    create_table_artifact(
        shown, key="comparison", description=verdict(content.comparison, content.gate)
    )
    latest = job.store.job(job.spec.name)
    places = {
        "the page": f"{latest.uri}/report.html",
        "the student": f"{content.artifacts['release']}/model",
        "MLflow": page_in_mlflow(job) or f"{content.mlflow['tracking_uri']}",
    }
    lines = [f"- {what}: {place}" for what, place in places.items()]
    text = latest.read("report.md").decode()
    create_markdown_artifact(
        "\n".join([text, "## Where it is", "", *lines, ""]),
        key="report",
        description="What was gained and lost, with examples, and where all of it is.",
    )
