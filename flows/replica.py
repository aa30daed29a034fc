"""The flow of a replica: a worker that helps another run's teacher, in any number.

The job starts it, with all that it needs to know; it writes nothing but answers into the ledger.
"""

from typing import Any

from prefect import flow

from tasks.replicas import answer


@flow(name="replica", persist_result=False)
def replica(given: dict[str, Any], number: int) -> int:
    """Answers a share of a job's examples and returns how many requests it sent.

    Args:
        given: What the job's own run told: the stage, and the folder in the store where all meet.
        number: Which of the job's replicas this is, from 1.
    """
    return answer(given, number)
