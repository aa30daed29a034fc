"""The distillation flow: seven stages, each cached by its artifact's manifest.

The controls that the student is compared with are trained as it is, one after the other.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prefect import flow
from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.runtime import flow_run

from retort.job import Job
from retort.spec import JobSpec, StageName, training_of
from retort.storage import Artifact, Folder, open_store
from retort.tracking import without_secrets
from tasks import curate, evaluate, generate, prepare, release, report, train, train_control
from tasks.listeners import tell


@flow(name="distill", flow_run_name="{spec.name}", persist_result=False)
def distill(
    spec: JobSpec, store: str = ".retort", force: list[StageName] | None = None
) -> dict[str, Any]:
    """Distils a teacher into a student and returns the report's content.

    Args:
        spec: The job, one section per stage.
        store: A local folder or s3://bucket/prefix with all that was made before.
        force: Stages to run again although their artifacts stand.
    """
    with open_job(spec, store, force or []) as job:
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
        page = report(
            job,
            prepare=examples,
            generate=responses,
            curate=kept,
            train=student,
            evaluate=scores,
            **controls,
        )
        model = release(job, train=student, report=page)
        publish(page, model)
        return job.finish(flow_run.get_id())


@contextmanager
def open_job(spec: JobSpec, store: str, force: list[StageName]) -> Iterator[Job]:
    """Gives the checked job with its MLflow run open, and ends that run honestly."""
    job = Job(spec, open_store(store), force, tell)
    flow_run_id = flow_run.get_id() or ""
    url = flow_run.get_flow_run_ui_url() or ""
    url = url if url.startswith("http") else ""  # an embedded server has no page
    job.open({"prefect.flow_run_id": flow_run_id, "prefect.flow_run_url": url})
    link_to_mlflow(job)
    try:
        yield job
    except BaseException as error:
        job.fail(error)
        raise


def link_to_mlflow(job: Job) -> None:
    """Leaves a link from the flow run to the job's MLflow run, where MLflow has a web page."""
    tracker = job.tracker
    if tracker.uri.startswith("http") and tracker.parent_id:
        path = f"#/experiments/{tracker.experiment_id}/runs/{tracker.parent_id}"
        create_link_artifact(
            f"{without_secrets(tracker.uri)}/{path}", link_text="MLflow run", key="mlflow-run"
        )


def publish(page: Artifact, model: Artifact) -> None:
    """Shows the report, and where the model lies, among the flow run's artifacts."""
    text = Folder(page.uri).read("report.md").decode()
    create_markdown_artifact(f"{text}\nThe student: `{model.uri}/model`\n", key="report")
