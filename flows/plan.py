"""The flow of a plan: trainings on nested subsets of what is stored, each a task, and their plan.

No teacher is asked: what a job has to have stored before is said where it is missing.
"""

import json

from prefect import flow

from flows.distill import SEND_SECONDS, open_job
from retort.events import shown
from retort.jobs import plan as plans
from retort.jobs import reporting
from retort.jobs.plan import words
from retort.jobs.plan.page import page
from retort.jobs.run import JobRun
from retort.processes.libraries import parse_one_at_a_time
from retort.spec import JobSpec
from tasks import make
from tasks.listeners import leave, markdown, outbox

parse_one_at_a_time()

PAGE = "plan.html"
# The plans that this process has made, by their jobs' names; see `flows.distill.finished`.
finished: dict[str, plans.Plan] = {}


@flow(name="plan", flow_run_name="{spec.name}", persist_result=False)
def plan(spec: JobSpec, store: str = ".retort") -> plans.Plan:
    """Says what more of the teacher's answers would cost and bring, and what holds a student back.

    Args:
        spec: The job, whose answers are stored.
        store: A local folder or s3://bucket/prefix; it keeps all that was made before.
    """
    with open_job(spec, store, (), kind="plan") as job:
        found = finished[spec.name] = plans.plan(job, make)
        publish(job, found)
        outbox.flush(SEND_SECONDS)
        return found


def publish(job: JobRun, found: plans.Plan) -> None:
    """Leaves the plan in the store as a page and in the job's report, in MLflow, and among the flow
    run's artifacts."""
    latest = job.store.job(job.spec.name)
    latest.write(PAGE, page(found))
    reporting.refresh(job.store, job.spec.name, found.points[-1].train)
    content = json.dumps(found.as_json(), indent=2, ensure_ascii=False).encode()
    files = {"plan.json": content, PAGE: latest.read(PAGE)}
    job.tracker.close_job(found.numbers(), None, files)
    heading, *rows = words.forecasts(found)
    cells = [dict(zip(heading, map(shown, row), strict=True)) for row in rows]
    leave("table", "plan", json.dumps(cells), markdown(words.headline(found)))
