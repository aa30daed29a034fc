"""`retort sweep`: which knobs of the training make the best student of the answers that are stored.

search.py holds the search, sampling.py what Optuna's samplers draw, words.py what is shown of it.
"""

from retort.jobs.sweep.search import RESULT, WINNER, Candidate, Found, search

__all__ = ["RESULT", "WINNER", "Candidate", "Found", "search"]
