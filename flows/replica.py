"""The flow of a replica: a worker that helps another run's teacher. A job may have many.

The job starts it with everything it needs; it writes nothing but answers to the ledger.
"""

from typing import Any

from prefect import flow

from tasks.replicas import answer


@flow(name="replica", persist_result=False)
def replica(given: dict[str, Any], number: int) -> int:
    """Answers a share of a job's examples and returns how many requests it sent.

    Args:
        given: What the job's own run passes on: the stage, and their common folder in the store.
        number: Which of the job's replicas this is, from 1.
    """
    return answer(given, number)
