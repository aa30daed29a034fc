"""Public benchmarks of teacher, base and student, by EleutherAI's lm-evaluation-harness.

This process never imports the harness. One child process reads the tasks, then each model runs in a
child of its own. Each result is stored under the digest of model, questions and settings, so that a
killed run continues with what is missing, and the same command again computes nothing.

`benchmarks.json` in a job's folder is the JSON of `Benchmarks` (retort/metrics/comparison/
shapes.py), which the report shows.
"""

from retort.jobs.benchmark.results import of_student, table
from retort.jobs.benchmark.run import BenchmarkRequest, benchmark

__all__ = ["BenchmarkRequest", "benchmark", "of_student", "table"]
