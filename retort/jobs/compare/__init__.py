"""Several finished jobs side by side: what each gained, and which student is better where that can
be told.

The surprise: nothing is measured or asked again. All is read from the jobs' reports; a difference
of two students comes from the scores of each example, which lie in the stores.
"""

from retort.jobs.compare.runs import Run, find
from retort.jobs.compare.tables import compare, page

__all__ = ["Run", "compare", "find", "page"]
