"""Several finished jobs side by side: what each gained, and which student is better where that can
be told.

Note: nothing is measured again and no model is asked. All is read from the jobs' reports; the
difference of two students comes from the scores of each example, which lie in the stores.
"""

from retort.jobs.compare.runs import Run, find
from retort.jobs.compare.tables import ComparedRuns, compare, page

__all__ = ["ComparedRuns", "Run", "compare", "find", "page"]
