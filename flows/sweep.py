"""The flow of a sweep: trials of a job's training on stored answers, each a few tasks.

No teacher is asked: what a job has to have stored before is said where it is missing.
"""

import json

from prefect import flow

from flows.distill import SEND_SECONDS, open_job
from retort.events import shown
from retort.jobs import sweep as sweeps
from retort.jobs import trials
from retort.jobs.sweep import words
from retort.processes.libraries import parse_one_at_a_time
from retort.spec import JobSpec
from retort.spec.variants import sweep_of
from tasks import make
from tasks.listeners import leave, markdown, outbox

parse_one_at_a_time()

# The sweeps that this process has made, by their jobs' names; see `flows.distill.finished`.
finished: dict[str, sweeps.Found] = {}


@flow(name="sweep", flow_run_name="{spec.name}", persist_result=False)
def sweep(spec: JobSpec, store: str = ".retort") -> sweeps.Found:
    """Searches the knobs of a job's training for the best student of the answers that are stored.

    Args:
        spec: The job, with what to try in its section `sweep`.
        store: A local folder or s3://bucket/prefix; it keeps all that was made before.
    """
    sweep_of(spec)
    with open_job(spec, store, (), kind="sweep") as job:
        found = sweeps.search(job, trials.stored(job, make), make)
        finished[spec.name] = found
        heading, *rows = words.table(found)
        cells = [dict(zip(heading, map(shown, row), strict=True)) for row in rows]
        leave("table", "sweep", json.dumps(cells), markdown(words.headline(found)))
        outbox.flush(SEND_SECONDS)
        return found
